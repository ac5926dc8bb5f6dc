"""A training stopped in the middle, as files, so that it goes on as if nothing had happened.

`state_of` takes everything that the next frame depends on out of an SB3 model; `save` writes such
a tree of plain values and arrays as a bundle (JSON and `.npz`, no pickle), `load` reads it back.
Start at `Checkpoints`.
"""

import random
import secrets
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecNormalize, unwrap_vec_normalize

from trade_pipeline.simulator.vec_env import TradingVecEnv
from trade_pipeline.storage import bundles
from trade_pipeline.storage.documents import json_hash, read_json, write_json
from trade_pipeline.storage.frames import frame_lock
from trade_pipeline.storage.location import ArtifactLocation, StorageError

STATE, ARRAYS = "state.json", "arrays.npz"
# Attributes of SB3's algorithms that change while they learn, where an algorithm has them.
COUNTERS = (
    "num_timesteps",
    "_episode_num",
    "_n_updates",
    "_n_calls",
    "_current_progress_remaining",
    "exploration_rate",
)
LAST_SEEN = ("_last_obs", "_last_original_obs", "_last_episode_starts", "_last_lstm_states")
REPLAY = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")

Tree = Any  # dictionaries, lists, tuples, arrays, tensors and JSON's own values


@dataclass(frozen=True)
class Checkpoints:
    """Where a training leaves its state, and for which training it is good.

    Attributes:
        location: key of the bundle; one version is kept.
        fingerprint: of all that a result depends on; another training's state is ignored.
    """

    location: ArtifactLocation
    fingerprint: str

    @contextmanager
    def alone(self, say: Callable[[str], None]) -> Iterator[None]:
        """Wait for another training of this trial to end, and clear away what a kill left."""

        def waits() -> None:
            say("waits: another run trains this trial and keeps its checkpoint at the moment")

        lock = ArtifactLocation(self.location.store, f"{self.location.key}.training")
        with frame_lock(lock, waits):
            for left in self.location.store.glob(f"staging/{self._staged}-*"):
                shutil.rmtree(left)
            yield

    @property
    def _staged(self) -> str:
        return f"checkpoint-{json_hash(self.location.key)[:16]}"

    def save(self, tree: Tree) -> None:
        """Replace what is there; a kill at any point leaves the old or the new one."""
        staging = bundles.staging(self.location.store, self._staged)
        arrays: dict[str, NDArray[Any]] = {}
        document = _encoded(tree, arrays)
        write_json(
            staging.child(STATE),
            {
                "fingerprint": self.fingerprint,
                "state": document,
                # No version twice: a folder that damage or a kill left behind is never met again.
                "saved": secrets.token_hex(16),
            },
        )
        with (staging.path / ARRAYS).open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        bundles.commit(bundles.seal(staging, (STATE, ARRAYS)), self.location)
        bundles.prune(self.location, keep=1)

    @property
    def was_saved(self) -> bool:
        """Whether a save has ended; a kill within the first one leaves nothing to go on from."""
        return self.location.child(bundles.POINTER).path.exists()

    def load(self) -> Tree | None:
        """What was saved last, or None: nothing, another training's, or a damaged one."""
        try:
            if bundles.current_version(self.location) is None:
                return None
            folder = bundles.current(self.location)
            bundles.verify(folder)
            document = read_json(folder.child(STATE))
            if document["fingerprint"] != self.fingerprint:
                return None
            with np.load(folder.path / ARRAYS, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            return _decoded(document["state"], arrays)
        except (StorageError, BadZipFile, ValueError, KeyError, TypeError, OSError):
            return None

    def remove(self) -> None:
        """Forget it: the training is done."""
        if self.location.path.exists():
            with frame_lock(self.location):
                # Moved away first: a kill must not leave half a checkpoint where a whole one was.
                doomed = bundles.staging(self.location.store, self._staged)
                self.location.path.rename(doomed.path / "checkpoint")
            shutil.rmtree(doomed.path)


def state_of(model: BaseAlgorithm) -> dict[str, Tree]:
    """Everything that the next frame of a model and its environments depends on."""
    environments, normalize = _environments(model)
    state: dict[str, Tree] = {
        "parameters": model.get_parameters(),
        "counters": {name: getattr(model, name) for name in COUNTERS if hasattr(model, name)},
        "seen": {name: getattr(model, name, None) for name in LAST_SEEN},
        "episodes": list(model.ep_info_buffer or ()),
        "environments": environments.simulation.arrays(),
        "random": {
            "python": random.getstate(),
            "numpy": np.random.get_state(),
            "torch": torch.get_rng_state(),
            "actions": model.action_space.np_random.bit_generator.state,
        },
    }
    entropy = getattr(model, "log_ent_coef", None)
    if entropy is not None:
        state["entropy"] = entropy.detach()
    if normalize is not None:
        state["normalize"] = _normalize_state(normalize)
    buffer = getattr(model, "replay_buffer", None)
    if buffer is not None:
        filled = buffer.buffer_size if buffer.full else buffer.pos
        state["replay"] = {
            "pos": buffer.pos,
            "full": buffer.full,
            **{name: _first(getattr(buffer, name), filled) for name in REPLAY},
        }
    logger = model.logger
    state["logged"] = {
        "values": dict(logger.name_to_value),
        "counts": dict(logger.name_to_count),
        "excluded": {name: list(of) for name, of in logger.name_to_excluded.items()},
    }
    return state


def restore(model: BaseAlgorithm, state: Mapping[str, Tree]) -> None:
    """Put a model, as `make_model` made it, where `state_of` found another one like it."""
    environments, normalize = _environments(model)
    model.set_parameters(state["parameters"], exact_match=True, device=model.device)
    for name, value in state["counters"].items():
        setattr(model, name, value)
    for name, value in state["seen"].items():
        # RecurrentPPO wants its own named tuple back.
        memory = name == "_last_lstm_states" and value is not None
        setattr(model, name, RNNStates(*value) if memory else value)
    model.ep_info_buffer = deque(state["episodes"], maxlen=model._stats_window_size)
    model.ep_success_buffer = deque(maxlen=model._stats_window_size)
    environments.restore(state["environments"])
    if "entropy" in state:
        model.log_ent_coef.data.copy_(state["entropy"])  # type: ignore[attr-defined]
    if normalize is not None:
        _restore_normalize(normalize, state["normalize"])
    if "replay" in state:
        _restore_replay(model.replay_buffer, state["replay"])  # type: ignore[attr-defined]
    logged = state["logged"]
    model.logger.name_to_value.update(logged["values"])
    model.logger.name_to_count.update(logged["counts"])
    model.logger.name_to_excluded.update(
        {name: tuple(of) for name, of in logged["excluded"].items()}
    )
    found = state["random"]
    random.setstate(found["python"])
    np.random.set_state(found["numpy"])
    torch.set_rng_state(found["torch"])
    model.action_space.np_random.bit_generator.state = found["actions"]


def _environments(model: BaseAlgorithm) -> tuple[TradingVecEnv, VecNormalize | None]:
    assert model.env is not None
    environments = model.env.unwrapped
    assert isinstance(environments, TradingVecEnv)
    return environments, unwrap_vec_normalize(model.env)


def _normalize_state(normalize: VecNormalize) -> dict[str, Tree]:
    def statistics(of: Any) -> dict[str, Tree]:
        return {"mean": of.mean, "var": of.var, "count": of.count}

    return {
        "account": statistics(normalize.obs_rms["account"]) if normalize.norm_obs else None,
        "reward": statistics(normalize.ret_rms),
        "returns": normalize.returns,
    }


def _restore_normalize(normalize: VecNormalize, state: Mapping[str, Tree]) -> None:
    kept = [(normalize.ret_rms, state["reward"])]
    if state["account"] is not None:
        kept.append((normalize.obs_rms["account"], state["account"]))
    for statistics, values in kept:
        for name, value in values.items():
            setattr(statistics, name, value)
    normalize.returns = state["returns"]


def _first(values: Any, count: int) -> Any:
    """The filled part of a replay buffer's array, or of each in a dictionary."""
    if isinstance(values, dict):
        return {name: array[:count] for name, array in values.items()}
    return values[:count]


def _restore_replay(buffer: Any, state: Mapping[str, Tree]) -> None:
    buffer.pos, buffer.full = state["pos"], state["full"]
    for name in REPLAY:
        own, given = getattr(buffer, name), state[name]
        for target, source in (
            [(own[key], given[key]) for key in own] if isinstance(own, dict) else [(own, given)]
        ):
            target[: len(source)] = source


def _encoded(tree: Tree, arrays: dict[str, NDArray[Any]]) -> Any:
    """JSON for a tree; its arrays and tensors go into `arrays` under a number."""
    match tree:
        case torch.Tensor():
            arrays[str(len(arrays))] = tree.detach().cpu().numpy()
            return {"tensor": str(len(arrays) - 1)}
        case np.ndarray():
            arrays[str(len(arrays))] = tree
            return {"array": str(len(arrays) - 1)}
        case np.generic():
            return _encoded(tree.item(), arrays)
        case Mapping():
            return {"pairs": [[key, _encoded(value, arrays)] for key, value in tree.items()]}
        case list():
            return [_encoded(value, arrays) for value in tree]
        case tuple():
            return {"tuple": [_encoded(value, arrays) for value in tree]}
        case None | bool() | int() | str():
            return tree
        case float():
            return tree if np.isfinite(tree) else {"float": repr(tree)}
    raise TypeError(f"a checkpoint cannot hold {type(tree).__name__} {tree!r}")


def _decoded(document: Any, arrays: Mapping[str, NDArray[Any]]) -> Tree:
    """The inverse of `_encoded`."""
    match document:
        case {"tensor": name}:
            return torch.from_numpy(np.array(arrays[name]))
        case {"array": name}:
            return arrays[name]
        case {"pairs": pairs}:
            return {key: _decoded(value, arrays) for key, value in pairs}
        case {"tuple": values}:
            return tuple(_decoded(value, arrays) for value in values)
        case {"float": value}:
            return float(value)
        case list():
            return [_decoded(value, arrays) for value in document]
    return document
