"""What a run leaves on disk, as artifacts in Weights & Biases: by default a reference to files that stay where they are."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import wandb


@dataclass(frozen=True)
class Files:
    """A folder to be named in W&B. what: the first word of its name there, before the run's id; kind: W&B's type.

    upload: whether W&B gets a copy of the files.
    """

    what: str
    kind: str
    path: Path
    metadata: Mapping[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    upload: bool = False

    def name(self, run: wandb.Run) -> None:
        """Make it an artifact of the run. Raises wandb's errors, and OSError."""
        metadata = dict(self.metadata) | {"path": str(self.path)}
        artifact = wandb.Artifact(f"{self.what}-{run.id}", type=self.kind, metadata=metadata)
        if self.upload:
            artifact.add_dir(str(self.path))
        else:
            # Without a checksum, which would read it all.
            artifact.add_reference(self.path.resolve().as_uri(), checksum=False)
        run.log_artifact(artifact, aliases=list(self.aliases))
