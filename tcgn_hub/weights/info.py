"""What is known of weights beside their parameters, in one form for manifest, config.json, model card and ONNX."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcgn_hub.errors import PanelError, WeightsError
from tcgn_hub.images.scale import NOMINAL_PATCH_UM
from tcgn_hub.panels import PANELS, find_genes, load_panel, named_genes
from tcgn_hub.weights.lineage import Parent, SeenSection

if TYPE_CHECKING:
    from tcgn_hub.weights.typical import Typical

INTERVAL_LEVEL = 0.9
"""Share of the measurements that a prediction interval is to hold."""

SCOPES = ("model", "backbone", "trunk")


@dataclass(frozen=True)
class WeightsInfo:
    """What is known of weights.

    Attributes:
        name: Tag, folder or file they were loaded from.
        genes: Symbols in the order of the outputs; none of a backbone or a trunk.
        units: Units of the outputs.
        sha256: Of the file of parameters.
        architecture: Name of the timm architecture.
        scope: 'model'; or what is to start training from: 'backbone' for weights without a classifier, 'trunk' for such
            without graph branches and head.
        crop: How patches are cut: ``patch_um``, ``nominal_patch_um``, ``px``, ``magnification``, ``rule``.
        training_data: What is stated of the training: ``name``, ``sections``, ``patients``, ``source``, ...
        held_out: Metrics on held-out sections; of each gene ``pcc`` and ``interval_radius``, by name ``significant``.
        ood: The features of the training tissue, see `tcgn_hub.prediction.ood`; None if they are not described.
        typical: What is predicted for the training tissue, see `tcgn_hub.weights.typical`; None if it is not described.
        parents: Weights that these were started from.
        seen: Sections that these or their parents were trained on or chosen by.
        license: Licence of the weights.
        origin: How they came about.
    """

    name: str
    genes: tuple[str, ...] = ()
    units: str = "not stated"
    sha256: str = ""
    architecture: str = "tcgn_base"
    scope: str = "model"
    crop: dict[str, Any] = field(default_factory=dict)
    training_data: dict[str, Any] = field(default_factory=dict)
    held_out: dict[str, Any] = field(default_factory=dict)
    ood: dict[str, Any] | None = None
    typical: dict[str, Any] | None = None
    parents: tuple[Parent, ...] = ()
    seen: tuple[SeenSection, ...] = ()
    license: str = "not stated"
    origin: str = "not stated"

    def to_json(self) -> dict[str, Any]:
        """As plain values; a panel of this package by its name."""
        panel: Any = next((name for name in PANELS if tuple(load_panel(name)) == self.genes), list(self.genes))
        plain = {key: getattr(self, key) for key in self.__dataclass_fields__ if key != "genes"}
        lineage = {key: [part.to_json() for part in plain[key]] for key in ("parents", "seen")}
        return {"panel": panel, **plain, **lineage}

    @classmethod
    def from_json(cls, document: dict[str, Any], **known: Any) -> WeightsInfo:
        """What `to_json` gave, or a part of it.

        Args:
            document: The object.
            **known: What is known from elsewhere, such as ``name``, ``genes`` or ``sha256``, and counts more.

        Raises:
            WeightsError: It is malformed, or does not fit the genes; the message says what.
        """
        stated = {**document, **known}
        name = str(stated.get("name", "these weights"))

        def refused(why: object) -> WeightsError:
            return WeightsError(f"What is stated of {name} is malformed ({why}).")

        for key, default in (("crop", {}), ("training_data", {}), ("held_out", {}), ("parents", []), ("seen", [])):
            if not isinstance(stated.get(key) or default, type(default)):
                raise refused(f"{key} is no {'list' if default == [] else 'object'}")
        if stated.get("scope", "model") not in SCOPES:
            raise refused(f"scope is {stated['scope']!r}, not one of {', '.join(SCOPES)}")
        try:
            genes = stated.get("genes") or (load_panel(stated["panel"]) if stated.get("panel") else ())
        except (PanelError, AttributeError) as err:
            raise refused(f"panel is no panel: {stated['panel']!r:.80}") from err
        for key in ("pcc", "pcc_given_depth"):
            pcc = (stated.get("held_out") or {}).get(key)
            if pcc is not None and not isinstance(pcc, (list, tuple)):
                raise refused(f"held_out.{key} is no list")
            if pcc is not None and len(pcc) != len(genes):
                raise refused(f"held_out.{key} has {len(pcc)} values for {len(genes)} genes")
        try:
            info = cls(
                **{
                    **{key: stated[key] for key in cls.__dataclass_fields__ if stated.get(key) is not None},
                    "name": name,
                    "genes": tuple(genes),
                    "parents": tuple(Parent(**parent) for parent in stated.get("parents") or ()),
                    "seen": tuple(SeenSection(**section) for section in stated.get("seen") or ()),
                }
            )
            _ = info.pcc, info.pcc_given_depth, info.significant, info.interval_radius, info.predicted_in_training
            _ = info.patch_um, info.nominal_patch_um, info.interval_level, info.tissue, info.skill
        except (ValueError, TypeError, AttributeError) as err:
            raise refused(err) from err
        return info

    def columns(
        self, genes: str | Path | Sequence[str] | None = None, *, significant_only: bool = False
    ) -> dict[str, int]:
        """Which outputs are asked for, by the names that they are asked by.

        Args:
            genes: See `tcgn_hub.panels.load_panel`, each by any name that `tcgn_hub.panels.find_genes` knows; all if
                None or "all".
            significant_only: Leave out genes that could not be predicted better than chance on held-out tissue.

        Raises:
            PanelError: A gene is not among the outputs, none is left, or significance was asked for but not measured.
        """
        named = named_genes(genes)
        found = (
            dict(zip(self.genes, self.genes, strict=True))
            if named is None
            else find_genes(named, self.genes, of=self.name)
        )
        if significant_only:
            if self.significant is None:
                raise PanelError(
                    f"Which genes {self.name} predicts better than chance was not measured; ask for all of them."
                )
            found = {name: gene for name, gene in found.items() if gene in self.significant}
            if not found:
                raise PanelError(f"{self.name} predicts none of these genes better than chance.")
        index = {gene: i for i, gene in enumerate(self.genes)}
        return {name: index[gene] for name, gene in found.items()}

    def renamed(self, columns: dict[str, int]) -> dict[str, list[str]]:
        """`tcgn_hub.result.Result.notes` on what `columns` found by another name than that of the panel."""
        found = {name: self.genes[i] for name, i in columns.items()}
        return {
            f"{name} is taken for {gene}": [self.name] for name, gene in found.items() if name.upper() != gene.upper()
        }

    @property
    def patch_um(self) -> float:
        """Side of the patches it was trained on, in micrometres; the paper's nominal 56 if it is not stated."""
        return float(self.crop.get("patch_um") or self.crop.get("nominal_patch_um") or NOMINAL_PATCH_UM)

    @property
    def nominal_patch_um(self) -> float:
        """The same by the nominal size of the pixels of their magnification, where it is stated.

        It is what an image of which only the magnification is known is cut by.
        """
        return float(self.crop.get("nominal_patch_um") or self.crop.get("patch_um") or NOMINAL_PATCH_UM)

    @cached_property
    def pcc(self) -> dict[str, float | None] | None:
        """Held-out correlation of each gene; None if it was not measured."""
        pcc = self.held_out.get("pcc")
        return None if pcc is None else dict(zip(self.genes, pcc, strict=True))

    @cached_property
    def pcc_given_depth(self) -> dict[str, float | None] | None:
        """The same with the depth of the spots held fixed; None if it was not measured."""
        pcc = self.held_out.get("pcc_given_depth")
        return None if pcc is None else dict(zip(self.genes, pcc, strict=True))

    @cached_property
    def significant(self) -> frozenset[str] | None:
        """Genes predicted better than chance on held-out tissue; None if it was not measured.

        Given depth, if `pcc_given_depth` is known.
        """
        significant = self.held_out.get("significant")
        if significant is None:
            return None
        others = set(significant) - set(self.genes)
        if others:
            raise ValueError(f"held_out.significant names {min(others)!r}, which is not in the panel")
        return frozenset(significant)

    @cached_property
    def interval_radius(self) -> dict[str, float] | None:
        """Half of the width of each gene's prediction interval in ``units``, NaN where unknown; None if not measured.

        See `tcgn_hub.evaluation.conformal`.
        """
        radius = self.held_out.get("interval_radius")
        if not radius:
            return None
        return {g: math.nan if r is None else float(r) for g, r in zip(self.genes, radius, strict=True)}

    @property
    def interval_level(self) -> float:
        """Share of the measurements that these intervals are to hold."""
        return float(self.held_out.get("interval_level") or INTERVAL_LEVEL)

    @cached_property
    def predicted_in_training(self) -> Typical | None:
        """What ``typical`` says; None if it is not described."""
        if self.typical is None:
            return None
        from tcgn_hub.weights.typical import Typical

        return Typical.from_json(self.typical, len(self.genes))

    @property
    def tissue(self) -> str:
        """The tissue that its skill was measured on, such as 'breast, patients B and C'; empty if it is not stated."""
        sections = (self.held_out.get("sections") or {}).values()
        patients = list(dict.fromkeys(str(section["patient"]) for section in sections if section.get("patient")))
        named = " and ".join([", ".join(patients[:-1]), patients[-1]] if len(patients) > 1 else patients)
        of = f"{'patients' if len(patients) > 1 else 'patient'} {named}" if patients else ""
        return ", ".join(part for part in (str(self.training_data.get("organ") or ""), of) if part)

    @property
    def significance(self) -> str:
        """What it means that a gene is marked significant, such as 'better than chance, given depth, on breast'."""
        given = ", given depth," if self.pcc_given_depth is not None else ""
        # that test did not allow enough for neighbouring spots being alike
        old = "significant_genes" in self.held_out and "significant_genes_pcc" not in self.held_out
        doubt = ", by the test of an earlier version, which marks too many genes" if old else ""
        return f"better than chance{given} on {self.tissue or 'held-out tissue'}{doubt}"

    @property
    def skill(self) -> str:
        """In one line, how many genes it tells apart, by what was measured on held-out tissue; empty if unknown."""
        rank, pcc, one, given = (
            self.held_out.get(key)
            for key in ("effective_rank", "median_pcc", "median_one_factor", "median_pcc_given_depth")
        )
        depth = self.held_out.get("depth_pcc")
        if rank is None:
            return ""
        count = max(round(rank), 1)
        parts = [f"effective rank {rank:.1f} of {len(self.genes)}"]
        if pcc is not None and one is not None:
            parts.append(f"{one:.2f} of {pcc:.2f} of the median PCC is one picture")
        if given is not None:
            parts.append(f"{given:.2f} is left given depth")
        if depth is not None:
            parts.append(f"predicted depth has a PCC of {depth:.2f}")
        follow = ""
        if pcc is not None and given is not None and 2 * given < pcc:
            follow = "; most maps follow tissue density"
        return f"tells about {count} {'gene' if count == 1 else 'genes'} apart ({'; '.join(parts)}){follow}"
