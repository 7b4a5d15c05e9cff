"""The position of a run: its clock and the number of updates, and how both are saved."""

from __future__ import annotations

from typing import Any, Protocol

from gantrain import clock
from gantrain.run_folder.checkpoint import Snapshot


class Part(Protocol):
    """A part of the trainer that holds state. The JSON of a checkpoint consists of the `state` of all parts."""

    def state(self) -> dict[str, Any]:
        """This part's entries of the checkpoint, as JSON values by key. Called on the main process only."""
        ...

    def load(self, snapshot: Snapshot, rolls_back: bool) -> None:
        """Restore this part from a checkpoint.

        Args:
            rolls_back: the run returns to one of its own checkpoints, and keeps its counts of rollbacks.
        """
        ...


class RunState:
    """The clock of a run: images seen.

    Args:
        total: images that the run trains on.

    Attributes:
        nimg: images seen.
        previous_nimg: images seen before the last update; -1 before the first image, so that everything periodic is due at 0.
        updates: updates done.
        saved_at: images seen at the checkpoint with the current state; -1 if there is none.
    """

    def __init__(self, total: int):
        self.total = total
        self.nimg, self.previous_nimg = 0, -1
        self.updates = 0
        self.saved_at = -1

    @property
    def kimg(self) -> float:
        """Thousands of images seen."""
        return self.nimg / 1000

    @property
    def done(self) -> bool:
        """Whether all images have been seen."""
        return self.nimg >= self.total

    @property
    def ends(self) -> bool:
        """Whether the last update reached the end. A finished run that is started again is `done`, but does not end again."""
        return self.done and self.previous_nimg < self.nimg

    def due(self, every_kimg: float | None) -> bool:
        """Whether the last update passed a multiple of `every_kimg`; never if that is None."""
        return clock.due(every_kimg, self.previous_nimg, self.nimg)

    def advance(self, images: int) -> None:
        """Count an update on `images` images."""
        self.updates += 1
        self.previous_nimg, self.nimg = self.nimg, self.nimg + images

    def state(self) -> dict[str, Any]:
        """The state before the maintenance of this moment; see `Saving.save`."""
        return {"previous_nimg": self.previous_nimg, "updates": self.updates}

    def load(self, snapshot: Snapshot, rolls_back: bool) -> None:
        """Set the clock to a checkpoint's."""
        self.nimg, self.previous_nimg, self.saved_at = snapshot.nimg, snapshot.state["previous_nimg"], snapshot.nimg
        self.updates = snapshot.state["updates"]
