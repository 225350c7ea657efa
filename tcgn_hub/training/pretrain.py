"""pretrain(): unlabelled tissue and frozen networks in, a backbone out."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from tcgn_hub.data.fields import CHUNK, Tissue, Tissues, all_chunks, draw_fields, read_tissues
from tcgn_hub.errors import OutputError, TrainingError
from tcgn_hub.evaluation.baselines import COLOUR_TEXTURE, color_texture_features
from tcgn_hub.evaluation.encoders import short_name
from tcgn_hub.files import write_text
from tcgn_hub.images.transforms import INPUT_PX, dihedral, to_input
from tcgn_hub.text import some
from tcgn_hub.training.batches import coarsened, even_starts
from tcgn_hub.training.checkpoints import check_folder, remove_checkpoints
from tcgn_hub.training.distributed import Processes
from tcgn_hub.training.loop import Loop, fits_float16
from tcgn_hub.training.optimisation import make_optimizer, make_schedule, set_dropout
from tcgn_hub.training.recipe import Distillation
from tcgn_hub.training.start import Start, starting_backbone
from tcgn_hub.training.teachers import LARGEST, Teacher
from tcgn_hub.weights.info import WeightsInfo
from tcgn_hub.weights.lineage import union
from tcgn_hub.writing.evaluations import draw, write_csv

_logger = logging.getLogger(__name__)

_OF_MEAN = 5.0  # weight of the error of a last map's mean over positions, beside that of the map
_OF_COLOURS = 1.0  # weight of the error of what is measured of colour and texture
_OF_STAGE = 0.5  # weight of the error of an earlier map
_LOOKED_AT = 512  # squares that tell how the channels of a teacher vary, or one of each chunk

# squares, one of eight views each, colour and texture of each, teachers' values
_Part = tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor]]


def pretrain(
    data: Tissues,
    *,
    teacher: str | Sequence[str],
    out: str | Path,
    recipe: Distillation | None = None,
    sections: Sequence[str] | None = None,
    mpp: float | None = None,
    resume: bool = False,
    device: str = "auto",
    workers: int = 0,
    cache: str | Path | None = None,
    checkpoint_minutes: float = 10,
    metadata: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Distil frozen networks into the backbone of TCGN, from tissue alone: no gene is looked at.

    The last map of the student tells, through a 1 x 1 convolution that is thrown away afterwards, the last map of each
    teacher and its mean over positions, and maps of its first stages tell those of a teacher of about their size. The
    mean of the last map tells, too, the hand-made features of colour and texture that the baseline of `evaluate` has.
    Everything is standardised by channel. Where squares are seen more than once the teachers are asked once, and what
    they say is kept on disk meanwhile. Started by ``torchrun``, several processes share each batch.

    Args:
        data: Sections, images or slides, or where to read them from; of sections only the image and the places of the
            spots.
        teacher: One or several networks of timm with trained parameters, 'hf-hub:ORG/NAME', or 'local-dir:DIR'. Whether
            its licence allows a student to be made, and passed on, is for you to heed.
        out: Folder to write: ``model.safetensors``, ``config.json``, ``README.md`` (the model card), ``metrics.json``,
            ``history.csv`` and ``figures/``. It is a start for `finetune` (``weights=out``), and a backbone for
            ``timm.create_model('local-dir:OUT', pretrained=True, num_classes=0)``.
        recipe: How to train.
        sections: Names of the sections or images to take; all if None.
        mpp: Micrometres per pixel of all images, in place of what they say.
        resume: Continue the run in ``out`` where it was interrupted; it ends with the weights that it would have had.
        device: Device to train on; 'auto' is CUDA where there is one.
        workers: Processes that prepare squares.
        cache: Folder to keep squares and what teachers say of them in, for several runs; below ``out``, for this run,
            if None.
        checkpoint_minutes: How often the state of the run is saved. It is saved too at Ctrl-C and SIGTERM.
        metadata: What else to record in the block ``tcgn`` of ``config.json``, such as the licence.
        progress: Show progress bars on stderr where that is a terminal, and else log a line a minute.

    Returns:
        What ``metrics.json`` holds: what the run follows from, and the loss of the last epoch.

    Raises:
        SectionError: Data are missing or malformed, show no tissue, or have no scale.
        WeightsError: A teacher cannot be had or gives no maps, or the weights to start from cannot be had.
        TrainingError: ``out`` holds another run, or the recipe does not fit.
        OutputError: The results cannot be written.
        KeyboardInterrupt: At Ctrl-C or SIGTERM, after the state was saved.
    """
    recipe, out = recipe or Distillation(), Path(out)
    check_folder(out, resume=resume)
    WeightsInfo.from_json(dict(metadata or {}), name="the metadata")
    names = [teacher] if isinstance(teacher, str) else list(teacher)
    if not names:
        raise TrainingError("There is no teacher to learn from; name one.")
    with Processes(device) as processes:
        tissues = read_tissues(data, names=sections, mpp=mpp)
        start = starting_backbone(recipe)
        teachers = [Teacher(name, device=processes.device) for name in names]
        if processes.first:
            _logger.info("%s", _beginning(start, tissues, teachers, recipe))
        folder = Path(cache) if cache is not None else out / "tissue"
        distiller = Distiller(
            tissues, teachers, recipe, start=start, processes=processes, cache=folder, progress=progress
        )
        stated = distiller.fingerprint(start)
        distiller.fit(out, fingerprint=stated, workers=workers, checkpoint_minutes=checkpoint_minutes)
        metrics: dict[str, Any] = {}
        if processes.first:
            metrics = _write(distiller, start, out, stated=stated, metadata=metadata or {})
            remove_checkpoints(out)
            if cache is None:
                shutil.rmtree(folder, ignore_errors=True)
        processes.wait()
    return metrics


class Student(nn.Module):
    """A backbone, and what reads each target off one of its maps."""

    def __init__(self, backbone: Any, teachers: Sequence[Teacher]) -> None:
        super().__init__()
        self.backbone = backbone
        widths = [*(info["num_chs"] for info in backbone.feature_info[:3]), backbone.num_features]
        self.stages = [[target.stage for target in teacher.targets] for teacher in teachers]
        self.readers = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(widths[target.stage], target.channels, 1) for target in teacher.targets)
            for teacher in teachers
        )
        self.colours = nn.Linear(backbone.num_features, COLOUR_TEXTURE)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[list[torch.Tensor]]]:
        """Colour and texture, and the maps of each teacher's targets."""
        last, between = self.backbone.forward_intermediates(x)
        maps = [*between[:3], last]
        return self.colours(last.mean((2, 3))), [
            [reader(maps[stage]) for reader, stage in zip(readers, stages, strict=True)]  # type: ignore[call-overload]
            for readers, stages in zip(self.readers, self.stages, strict=True)
        ]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups of layers for layer-wise learning rates: the backbone's, and the readers above them."""
        own = self.backbone.group_matcher(coarse)

        def moved(pattern: Any) -> Any:
            if isinstance(pattern, str):
                return pattern.replace("^", r"^backbone\.", 1)
            return [(text.replace("^", r"^backbone\.", 1), value) for text, value in pattern]

        return {key: moved(pattern) for key, pattern in own.items()}

    def no_weight_decay(self) -> set[str]:
        """Parameters that do not decay."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}


class Distiller(Loop):
    """Trains a student to give the maps of its teachers; see `pretrain` for what is around it.

    ``tissues``: what to cut squares from; ``teachers``: the frozen networks; ``recipe``: how to train; ``start``: the
    backbone; ``processes``: those that share the work; ``cache``: folder for squares and what teachers say of them;
    ``progress``: whether to show how far it is.
    """

    recipe: Distillation

    def __init__(
        self,
        tissues: Sequence[Tissue],
        teachers: Sequence[Teacher],
        recipe: Distillation,
        *,
        start: Start,
        processes: Processes | None = None,
        cache: Path,
        progress: bool = False,
    ) -> None:
        super().__init__(recipe, processes, progress=progress)
        self.teachers = list(teachers)
        sides = {"smallest_um": recipe.smallest_um, "largest_um": recipe.largest_um}
        self.fields = draw_fields(tissues, recipe.crops, **sides, seed=recipe.seed, progress=self._shown)
        parts = self.processes.count * recipe.accumulate
        if recipe.batch_size < parts:
            raise TrainingError(f"A batch of {recipe.batch_size} cannot be divided into {parts} parts; enlarge it.")
        self._starts = even_starts(recipe.crops, recipe.batch_size, parts)
        self._squares = self._prepare(cache)
        self._per_epoch = len(self._starts)
        self.total = recipe.epochs * self._per_epoch
        self._cycle = self.total // recipe.cycles
        set_dropout(start.model, recipe.drop_rate)
        with torch.random.fork_rng([]):
            torch.manual_seed(recipe.seed)
            student: Any = Student(start.model, self.teachers)
        student = self.processes.prepared(student.to(self.processes.device))
        if recipe.grad_checkpointing:
            student.backbone.set_grad_checkpointing(True)
        optimizer = make_optimizer(student, recipe)
        self._begin(student, optimizer, make_schedule(optimizer, recipe, self._cycle))

    def _prepare(self, cache: Path) -> Squares:
        """Cut the squares and ask the teachers; the first process does, for all of them."""
        kept = self.recipe.epochs > 1
        for turn in (True, False):
            if self.processes.first == turn:
                shown = self._shown
                pixels = list(all_chunks(self.fields, cache, progress=shown))
                try:
                    said = [t.all_chunks(self.fields, cache, progress=shown) for t in self.teachers] if kept else []
                except OutputError as err:
                    need = sum(t.width for t in self.teachers) * 2 * len(self.fields) / 1e9
                    raise OutputError(
                        f"{err} What the teachers say of {len(self.fields)} squares takes {need:.1f} GB; give another"
                        " cache, fewer crops, or one epoch, in which nothing is kept."
                    ) from err
                # of all images, whose chunks come one after the other
                some_of = slice(None, None, max(1, len(self.fields) // _LOOKED_AT))
                squares = [np.asarray(of[some_of]) for of in pixels]
                for number, teacher in enumerate(self.teachers):
                    teacher.look([of[some_of] for of in said[number]] if kept else [teacher(of) for of in squares])
                colours = np.concatenate([color_texture_features(of) for of in squares])
            self.processes.wait()
        return Squares(pixels, said, self.recipe, colours.mean(axis=0), colours.std(axis=0) + 1e-6)

    def fingerprint(self, start: Start) -> dict[str, Any]:
        """Everything that the result follows from, as plain values."""
        return {
            "recipe": self.recipe.to_dict(),
            "weights": None if start.parent is None else start.parent.to_json(),
            "teachers": [
                {"name": short_name(t.name), "sha256": t.fingerprint, "license": t.license} for t in self.teachers
            ],
            "data": {t.name: {**t.seen.to_json(), "content": _content(t)} for t in self.fields.tissues},
        }

    def items(self) -> int:
        """How many squares an epoch passes over."""
        return len(self.fields)

    def batches(self, epoch: int, skip: int, workers: int) -> Iterator[tuple[int, list[_Part]]]:
        """The steps of an epoch but for the first ``skip``, see `Loop.batches`."""
        recipe, processes = self.recipe, self.processes
        order = np.random.default_rng((recipe.seed, epoch)).permutation(len(self.fields)).tolist()
        ends = [*self._starts[1:], len(order)]
        chunks = [order[i:j] for i, j in zip(self._starts, ends, strict=True)][skip:]
        parts = processes.count * recipe.accumulate
        keys = [
            [(epoch, item) for item in chunk[part::parts]]
            for chunk in chunks
            for part in range(processes.rank, parts, processes.count)
        ]
        loader = iter(DataLoader(self._squares, batch_sampler=keys, num_workers=workers, collate_fn=_collate))
        for chunk in chunks:
            yield len(chunk), [next(loader) for _ in range(recipe.accumulate)]

    def loss(self, part: _Part) -> tuple[torch.Tensor, int]:
        """Mean of the error over the squares of a part of a batch, and how many there are."""
        device = self.processes.device
        squares, views, colours, said = part
        if not self._squares.asked:
            # what is not kept is asked of the squares as they are turned
            said, views = [torch.from_numpy(t(said[0].numpy())) for t in self.teachers], torch.zeros_like(views)
        with self.autocast():
            measured, told = self._network(to_input(squares.to(device)))
        losses = [_OF_COLOURS * len(self.teachers) * (measured.float() - colours.to(device)).square().mean()]
        for teacher, of, values in zip(self.teachers, told, said, strict=True):
            targets = teacher.maps(values.to(device))
            turned = [torch.stack([dihedral(m, int(v)) for m, v in zip(maps, views, strict=True)]) for maps in targets]
            for target, found, wanted in zip(teacher.targets, of, turned, strict=True):
                error = (found.float() - wanted).square().mean()
                if target.source == -1:
                    mean = (found.float().mean((2, 3)) - wanted.mean((2, 3))).square().mean()
                    losses.append(error + _OF_MEAN * mean)
                else:
                    losses.append(_OF_STAGE * error)
        return torch.stack(losses).sum() / len(self.teachers), len(squares)


class Squares(Dataset):
    """Varied squares of tissue, and what teachers say of them as they are.

    ``pixels``: of each chunk; ``said``: of each teacher, of each chunk; none to be asked later; ``recipe``: says how
    squares are varied; ``mean`` and ``std``: of what is measured of colour and texture, shape (32,).
    """

    def __init__(
        self,
        pixels: Sequence[np.ndarray],
        said: Sequence[Sequence[np.ndarray]],
        recipe: Distillation,
        mean: np.ndarray,
        std: np.ndarray,
    ) -> None:
        self._pixels, self._said, self._recipe, self._mean, self._std = pixels, said, recipe, mean, std

    @property
    def asked(self) -> bool:
        """Whether it is known what the teachers say."""
        return bool(self._said)

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, int, torch.Tensor, list[torch.Tensor]]:
        """A square (3, 224, 224), float32 in 0 to 255, which of eight views it is, its colours, the teachers' values.

        Colour and texture are measured as the student sees them. Where the teachers' values are not known, the square
        before its colours and its resolution were changed, uint8.
        """
        epoch, item = key
        number, row = divmod(item, CHUNK)
        rng = np.random.default_rng((self._recipe.seed, epoch, item))
        view = int(rng.integers(0, 8))
        gain, shift = rng.uniform(-1, 1, (2, 3, 1, 1)).astype(np.float32) * self._recipe.color_jitter
        whole = np.ascontiguousarray(dihedral(np.asarray(self._pixels[number][row]), view))
        square = torch.from_numpy(np.clip(whole * (1 + gain) + 120 * shift, 0, 255))
        said = [torch.from_numpy(np.array(of[number][row])) for of in self._said]
        square = coarsened(square, self._recipe.coarsest, rng)
        measured = color_texture_features(square.numpy()[None])[0]
        # what did not vary where it was looked at must not drown all others
        colours = torch.from_numpy(((measured - self._mean) / self._std).clip(-LARGEST, LARGEST))
        return square, view, colours, said or [torch.from_numpy(whole.copy())]


def _collate(items: list[Any]) -> _Part:
    squares, views, colours, said = zip(*items, strict=True)
    values = [torch.stack(of) for of in zip(*said, strict=True)]
    return torch.stack(squares), torch.tensor(views), torch.stack(colours), values


def _write(
    distiller: Distiller, start: Start, out: Path, *, stated: Mapping[str, Any], metadata: Mapping[str, Any]
) -> dict[str, Any]:
    from tcgn_hub.weights.card import model_card
    from tcgn_hub.weights.model_dir import save_model_dir

    recipe, tissues, before = distiller.recipe, distiller.fields.tissues, start.info
    backbone: Any = distiller.state.kept.backbone
    info = WeightsInfo.from_json(
        {
            "license": "not stated",
            "origin": f"distilled with tcgn_hub from {some(t['name'] for t in stated['teachers'])}, no gene was seen",
            **metadata,
            "scope": "backbone",
            "crop": {
                "rule": f"squares of {recipe.smallest_um:g} to {recipe.largest_um:g} um, resized to {INPUT_PX} px"
            },
            "training_data": {
                "name": "own tissue",
                **(metadata.get("training_data") or {}),
                "sections": [t.name for t in tissues],
                "patients": sorted({t.seen.patient for t in tissues}),
                "teachers": stated["teachers"],
            },
            "parents": [p.to_json() for p in ((start.parent, *before.parents) if before else ()) if p],
            "seen": [s.to_json() for s in union(before.seen if before else (), [t.seen for t in tissues])],
        },
        name=out.resolve().name,
        architecture=backbone.pretrained_cfg["architecture"],
    )
    save_model_dir(backbone, out, info, half=fits_float16(backbone))
    write_text(out / "README.md", model_card(info.name, info))
    history = distiller.state.history
    write_csv(out / "history.csv", history)
    draw(out / "figures", history=history)
    metrics = {**stated, "crops": len(distiller.fields), "epochs": len(history), "loss": history[-1]["loss"]}
    write_text(out / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    return metrics


def _beginning(start: Start, tissues: Sequence[Tissue], teachers: Sequence[Teacher], recipe: Distillation) -> str:
    known = start.parent
    taught = ", ".join(f"{short_name(t.name)} (licence: {t.license})" for t in teachers)
    return (
        f"Starting {f'from {known.name}' if known else 'from scratch'}: {recipe.crops} squares of"
        f" {some(t.name for t in tissues)}, {recipe.epochs} epochs, taught by {taught}. Heed the licence: what is"
        " distilled may be a derivative of its teacher."
    )


def _content(tissue: Tissue) -> str:
    digest = hashlib.sha256(json.dumps([tissue.mpp, tissue.seen.image]).encode())
    if tissue.xy is not None:
        digest.update(np.ascontiguousarray(tissue.xy).tobytes())
    return digest.hexdigest()
