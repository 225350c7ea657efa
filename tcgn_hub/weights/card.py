"""The model card of a model directory: what a stranger must know before using the weights."""

from __future__ import annotations

from typing import Any

__all__ = ["model_card"]

_LICENSES = {"Apache-2.0": "apache-2.0", "MIT": "mit", "CC-BY-4.0": "cc-by-4.0", "CC-BY-NC-4.0": "cc-by-nc-4.0"}

_CITATION = """\
@article{xiao2024tcgn,
  title   = {Transformer with convolution and graph-node co-embedding: An accurate and interpretable vision backbone
             for predicting gene expressions from local histopathological image},
  author  = {Xiao, Xiao and Kong, Yan and Li, Ronghan and Wang, Zuoheng and Lu, Hui},
  journal = {Medical Image Analysis},
  year    = {2024}
}"""


def model_card(repo_id: str, entry: dict[str, Any], genes: list[str]) -> str:
    """A card in the Hub's format, front matter included.

    Args:
        repo_id: Repository it is for, or the name of a folder that is in none.
        entry: The entry of the manifest, see `tcgn_hub.weights.model_dir.manifest_entry`.
        genes: The panel in the order of the outputs.
    """
    from huggingface_hub import ModelCardData

    data, held_out, crop = entry["training_data"], entry["held_out"], entry["crop"]
    published = "/" in repo_id
    source = f"{'hf-hub' if published else 'local-dir'}:{repo_id}"
    verified = (
        "`tcgn_hub.create_model` does the same and checks the sha256 of what was downloaded. " if published else ""
    )
    license_id = _LICENSES.get(entry["license"], "other")
    front = ModelCardData(
        tags=["timm", "pathology", "histology", "spatial-transcriptomics", "gene-expression"],
        library_name="timm",
        pipeline_tag="image-feature-extraction",
        license=license_id,
        license_name=entry["license"] if license_id == "other" else None,
        datasets=[str(data.get("name", "not stated"))],
    )
    parts = [
        f"---\n{front.to_yaml()}\n---",
        f"# {repo_id.split('/')[-1]}",
        f"TCGN (Xiao et al., *Medical Image Analysis* 2024) predicts the expression of {len(genes)} genes from a patch"
        f" of an H&E image. Output: `{entry['units']}`, one value a gene, in the order of `label_names`.",
        "## Usage",
        "```python\n"
        "import timm, tcgn_hub\n\n"
        f'model = timm.create_model("{source}", pretrained=True).eval()\n'
        'genes = model.pretrained_cfg["label_names"]\n'
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n"
        "```",
        f"{verified}On the command line: `tcgn predict patch.png --weights {source.removeprefix('local-dir:')}`.",
        f"Input: {crop.get('rule', 'not stated')}."
        + (f" The crops it was trained on cover {crop['patch_um']} µm." if {"px", "patch_um"} <= set(crop) else ""),
        "## Training data",
        _facts(
            {
                "Data": data.get("name"),
                "Sections": _listed(data.get("sections")),
                "Held out": _listed(data.get("held_out")),
                "Source": data.get("source"),
                "Licence of the data": data.get("license", "not stated"),
                "Origin of the weights": entry["origin"],
                "Licence of the weights": entry["license"],
            }
        ),
        "## Held-out metrics",
        _metrics(held_out, genes),
        "## Intended use and limits",
        "For research, not for diagnosis. The weights know the organ, stain, scanner and protocol of their training"
        " data; expect less on another patient and much less on another organ, stain or scanner. A gene that correlates"
        " better than chance with the measurement on held-out tissue is not thereby predicted accurately. Patches"
        " without tissue get values too: leave them out.",
        "## Citation",
        f"```bibtex\n{_CITATION}\n```",
    ]
    if data.get("citation"):
        parts.append(f"Data: {data['citation']}.")
    return "\n\n".join(parts) + "\n"


def _listed(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def _facts(facts: dict[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in facts.items() if value)


def _metrics(held_out: dict[str, Any], genes: list[str]) -> str:
    if not held_out.get("pcc"):
        return "Not measured: nothing is known of how well these weights do on tissue they have not seen."
    rows = [
        ("Median Pearson correlation over genes", held_out.get("median_pcc")),
        ("The same of ridge regression on colour and texture", held_out.get("median_pcc_ridge")),
        ("Genes better than chance at a false discovery rate of 5 %", len(held_out.get("significant", []))),
        ("Spots", held_out.get("spots")),
    ]
    table = []
    if held_out.get("protocol"):
        table += [f"Protocol: {held_out['protocol']}. The published weights were trained on all of it.", ""]
    if held_out.get("interval_radius"):
        covered = held_out.get("interval_coverage") or {}
        across = " and ".join(f"{share:.0%} of {name}" for name, share in covered.items()).replace("%", " %")
        table += [
            f"With {held_out['interval_level']:.0%}".replace("%", " %")
            + " prediction intervals, which"
            + (f" hold {across} if they come from the others." if across else " were checked on no other section."),
            "",
        ]
    table += ["| measure | value |", "|---|---|"]
    table += [
        f"| {name} | {value:.3f} |" if isinstance(value, float) else f"| {name} | {value} |" for name, value in rows
    ]
    best = sorted(zip(genes, held_out["pcc"], strict=True), key=lambda pair: -(pair[1] or 0))[:20]
    table += ["", "The twenty best genes (all of them are in `config.json`):", "", "| gene | PCC |", "|---|---|"]
    return "\n".join(table + [f"| {gene} | {pcc:.3f} |" for gene, pcc in best if pcc is not None])
