"""Whether the features of an evaluation fit into memory, before any is computed."""

from __future__ import annotations

from gantrain.memory import main_memory, require_memory

# Bytes of a value while the parts of the features are put together: the parts, and the whole, both in float32.
JOINED = 8


def require_room_for_features(key: str, generated: int, widths: tuple[int, int]) -> None:
    """Refuse more generated images than main memory holds features of.

    Args:
        key: what sets their number, such as "eval.num_samples" or "--num".
        generated: how many there are.
        widths: (features, logits) per image.

    Raises:
        UserError: names the key, the need and what there is.
    """
    require_memory(f"{key}: {generated}", generated * sum(widths) * JOINED, main_memory(), "their features", "use fewer samples")
