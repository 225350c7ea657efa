"""The model card of a model directory: what a stranger must know before using the weights."""

from __future__ import annotations

from tcgn_hub.weights.info import WeightsInfo

_LICENSES = {"Apache-2.0": "apache-2.0", "MIT": "mit", "CC-BY-4.0": "cc-by-4.0", "CC-BY-NC-4.0": "cc-by-nc-4.0"}


def model_card(repo_id: str, info: WeightsInfo) -> str:
    """A card in the Hub's format, front matter included."""
    from huggingface_hub import ModelCardData
    from jinja2 import Environment, PackageLoader, StrictUndefined

    license_id = _LICENSES.get(info.license, "other")
    front = ModelCardData(
        tags=["timm", "pathology", "histology", "spatial-transcriptomics", "gene-expression"],
        library_name="timm",
        pipeline_tag="image-feature-extraction",
        license=license_id,
        license_name=info.license if license_id == "other" else None,
        datasets=[str(info.training_data.get("name", "not stated"))],
    )
    known = sorted(((gene, pcc) for gene, pcc in (info.pcc or {}).items() if pcc is not None), key=lambda row: -row[1])
    environment = Environment(
        loader=PackageLoader("tcgn_hub.weights", "."),
        autoescape=False,  # it is Markdown
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    covered = info.held_out.get("interval_coverage") or {}
    return environment.get_template("card.md.jinja").render(
        front=front.to_yaml(),
        info=info,
        title=repo_id.split("/")[-1],
        source=f"{'hf-hub' if '/' in repo_id else 'local-dir'}:{repo_id}",
        published="/" in repo_id,
        data=info.training_data,
        best=known[:20],
        covered=" and ".join(f"{100 * share:.0f} % of {name}" for name, share in covered.items()),
        level=f"{100 * info.interval_level:.0f} %",
        rows=[
            (name, f"{value:.3f}" if isinstance(value, float) else value)
            for name, value in (
                ("Median Pearson correlation over genes", _stated(info, "median_pcc")),
                ("The same given the depth of each spot", _stated(info, "median_pcc_given_depth")),
                ("The same if one picture stood for all genes", _stated(info, "median_one_factor")),
                ("The same of ridge regression on colour and texture", _of_method(info, "ridge")),
                ("The same of the depth of each spot alone, which no image tells", _of_method(info, "depth")),
                ("The same of the 50 most variable genes", _stated(info, "hvg50")),
                ("Different pictures that the genes are worth (effective rank)", info.held_out.get("effective_rank")),
                (
                    f"Genes {info.significance}, at a false discovery rate of 5 %",
                    None if info.significant is None else len(info.significant),
                ),
                ("Spots", info.held_out.get("spots")),
            )
            if value is not None
        ],
    )


def _stated(info: WeightsInfo, key: str) -> str | None:
    """A held-out metric with its interval."""
    value, ends = info.held_out.get(key), info.held_out.get(f"{key}_interval")
    if value is None:
        return None
    return f"{value:.3f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")


def _of_method(info: WeightsInfo, label: str) -> float | None:
    """The median correlation of another method, measured beside the weights."""
    return (info.held_out.get("methods") or {}).get(label, {}).get("median_pcc")
