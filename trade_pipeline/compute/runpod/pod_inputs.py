"""Has all that a task reads in the pod, whole, before it starts; a process of its own.

Run as `python -m trade_pipeline.compute.runpod.pod_inputs <as the supervisor>`. Apart from the
supervisor because reading bundles loads much that its first process does without, and because a
process can be ended at any point.
"""

import sys

from trade_pipeline.compute.runpod.pod_task import (
    NO_INPUT,
    Attempt,
    Place,
    PodTask,
    parse_arguments,
    read_task,
)
from trade_pipeline.storage import bundles
from trade_pipeline.storage.location import ArtifactLocation, StorageError


def prepare(attempt: Attempt, task: PodTask, place: Place) -> None:
    """Fetch what is in a bucket, then hash every input.

    Raises:
        StorageError: an input is missing, damaged or of another version.
    """
    objects = None
    if place.s3 is not None:
        from trade_pipeline.compute.runpod.pod_bucket import (
            connect,
            fetch_bundle,
            fetch_checkpoint,
        )

        objects = connect(place.s3, place.url, place.region)
        if task.wheel is not None:
            key = task.wheel[0]
            objects.get_file(key, ArtifactLocation(attempt.root, key).path)
        if task.checkpoint is not None:
            fetch_checkpoint(objects, ArtifactLocation(attempt.store, task.checkpoint))
    for key, version in task.inputs.items():
        location = ArtifactLocation(attempt.store, key)
        if objects is not None:
            fetch_bundle(objects, location)
        found = bundles.verify(location)["version"]
        if found != version:
            raise StorageError(
                f"{location}: holds version {found}, not {version} as the task was told; the host "
                "has to put it there again."
            )


def main() -> int:
    """Prepare the attempt that the command line names."""
    place = parse_arguments()
    attempt = Attempt(place.root, place.job, place.attempt)
    try:
        prepare(attempt, read_task(attempt.task), place)
    except (StorageError, OSError) as error:
        print(f"An input cannot be used: {error}", file=sys.stderr, flush=True)
        return NO_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
