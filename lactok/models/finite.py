"""The check before a quantizer: the nearest code of NaN, and the rounding of infinity, are valid ids of nothing."""

from __future__ import annotations

from torch import Tensor


def require_finite(vectors: Tensor, what: str) -> None:
    """Raises FloatingPointError naming how many values, of which images, are not finite.

    vectors: float (B, ...), one image a row; what: their name in the message. A tensor without memory passes.
    """
    if vectors.device.type == "meta":
        return
    finite = vectors.isfinite()
    if finite.all():
        return
    bad = [place for place, row in enumerate(finite.flatten(1).all(1).tolist()) if not row]
    shown = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
    raise FloatingPointError(
        f"{int((~finite).sum()):,} of {finite.numel():,} values of {what} are not finite (NaN or infinite), in "
        f"image(s) {shown} of a batch of {len(finite)}: they have no id. The encoder's weights are damaged, or its "
        f"{str(vectors.dtype).removeprefix('torch.')} numbers overflow: verify the checkpoint, or run at precision=fp32"
    )
