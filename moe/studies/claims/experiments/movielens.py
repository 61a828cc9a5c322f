"""Do the weights of top-k gates jump, and those of DSelect-k not? Hazimeh et al. 2021, on MovieLens."""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.metrics import roc_auc_score

from moe.config import build, require
from moe.experts.network import Experts
from moe.nn.linear import T5_INIT, normal
from moe.routing.methods.static_gates import StaticGateConfig
from moe.studies.claims.experiments.ratings import FILMS, USERS, Rows, read_ratings, split, with_unwatched
from moe.studies.claims.experiments.tuned import Asked, Plan, TunedExperiments, by_rate, runs_of
from moe.studies.study import Inputs

_EXPERTS = 16
_TASKS = ("watch", "rating")
_DATA_SEED = 0  # of the split, and of the films that were not watched

_ARMS: dict[str, dict[str, Any]] = {
  "dselect_k": {"gate": {"name": "dselect_k", "k": 2, "gamma": 1.0, "entropy_loss": 0.05}},
  "top_k": {"gate": {"name": "top_k", "k": 2}},
  "softmax": {"gate": {"name": "softmax"}},
}
_SIZES = {"batch": 512, "width": 16, "task_weights": [0.5, 0.5]}
_PLANS = {
  "smoke": Plan(rates=(0.01,), tuning=1, seeds=2, sizes=_SIZES | {"epochs": 1, "rows": 2048}),
  "cpu": Plan(rates=(0.003, 0.01, 0.03), tuning=1, seeds=5, sizes=_SIZES | {"epochs": 4, "rows": 0}),
}
_MEASURES = {
  "variance": "variance of a task's weights",
  "jump": "largest change of a weight in one step",
  "loss": "test loss",
  "auc": "watch: AUC",
  "mse": "rating: squared error",
}


class MovieLens(TunedExperiments, name="movielens"):
  """Two tasks with a static gate each share 16 experts: whether a user watched a film, and how it was rated.

  Embeddings of user and film go to all experts; each task mixes their outputs by its gate, and has a head of its own.
  As many films as were watched are drawn of those that were not; they count for the first task alone. The loss is the
  mean of the binary cross-entropy and the squared error with weights of one half. A tenth of the rows is the test, of
  the others an eighth validates: the test is at the epoch, and the learning rate of an arm that, with the least loss
  there. Beside the published setting (MovieLens-1M, embeddings of 128, experts and heads of 256, dropout, up to 100
  epochs, tuned weights) this is small: embeddings of 8, experts and heads of 16, no dropout, four epochs. DSelect-k's
  gamma is 1, and the weight of its entropy 0.05, the least of the published grid.

  The weights of both gates are recorded after every step. Their variance is over the steps of the second half, when all
  gates have left their start, summed over experts, mean over tasks. The primary contrast is top-k's less DSelect-k's,
  which holds if its interval is above 0 and its mean above 0.001; the second, the largest change of a weight in one
  step. That the final loss differs little is said if the claim that it differs by 0.01 does not hold.
  """

  claim = (
    "In training on ratings the weights of top-k gates jump, DSelect-k's do not, and the final losses differ little."
  )
  source = "Hazimeh et al. 2021, arXiv 2106.03760; the setting is that of COMET (Ibrahim et al. 2023), made small"
  reads = ("ratings",)
  plans = _PLANS
  arms = _ARMS
  chosen_by = "validation"
  measures = _MEASURES
  asked = (
    Asked("The weights of top-k vary more than DSelect-k's", "variance", "top_k", "dselect_k", 0.001),
    Asked("The largest change of a weight in one step is larger for top-k", "jump", "top_k", "dselect_k", 0.01),
    Asked("The test losses of top-k and DSelect-k differ", "loss", "top_k", "dselect_k", 0.01, either_way=True),
    Asked("The test losses of softmax and DSelect-k differ", "loss", "softmax", "dselect_k", 0.01, either_way=True),
  )

  def data_fields(self, inputs: Inputs) -> dict[str, Any]:
    return {"data_dir": inputs.data_dir}

  def check_inputs(self, budget: str, inputs: Inputs) -> None:
    require(bool(inputs.data_dir), "--data_dir", inputs.data_dir, "expected the folder of MovieLens-100k, with u.data")
    read_ratings(inputs.data_dir)

  def data_read(self, budget: str, inputs: Inputs) -> dict[str, int]:
    path = pathlib.Path(inputs.data_dir or "-") / "u.data"
    return {path.name: path.stat().st_size} if path.is_file() else {}

  def experiment(self, config: Mapping[str, Any]) -> dict[str, Any]:
    rows = with_unwatched(read_ratings(config["data_dir"]), _DATA_SEED)
    if config["rows"]:
      rows = rows.taken(np.random.default_rng(_DATA_SEED).permutation(len(rows))[: config["rows"]])
    train, *held_out = split(rows, _DATA_SEED)
    return by_rate(config, _trained(build(StaticGateConfig, config["gate"]), config, train, held_out))


class TwoTasks(nnx.Module):
  """Predictions of both tasks from shared experts.

  Attributes:
    user, film: float32 `[943, d/2]`, `[1682, d/2]`, embeddings.
    experts: E networks of width d; heads: two more, one for each task.
    watch, rating: the gates of the tasks.
  """

  def __init__(self, gate: StaticGateConfig, width: int, rngs: nnx.Rngs):
    self.user, self.film = (normal(rngs, (number, width // 2), 0.1) for number in (USERS, FILMS))
    self.experts, self.heads = (
      Experts(number, width, width, "relu", jnp.float32, T5_INIT, rngs=rngs) for number in (_EXPERTS, len(_TASKS))
    )
    self.bias = nnx.Param(jnp.zeros(len(_TASKS)))
    self.watch, self.rating = (gate.make(_EXPERTS, rngs) for _ in _TASKS)

  def __call__(self, user: jax.Array, film: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Predictions `[2, B]`, the gates' weights `[2, E]`, and what they add to the loss."""
    x = jnp.concatenate([self.user[...][user], self.film[...][film]], -1)  # [B, d]
    outputs = self.experts.slots(self.experts.weights(), jnp.broadcast_to(x, (_EXPERTS, *x.shape)))
    (watch, watch_loss), (rating, rating_loss) = self.watch(), self.rating()
    weight = jnp.stack([watch, rating])
    mixed = jnp.einsum("te,ebd->tbd", weight, outputs)
    found = self.heads.slots(self.heads.weights(), mixed)[..., 0]  # the first output of a head is its prediction
    return found + self.bias[...][:, None], weight, watch_loss + rating_loss


def _trained(
  gate: StaticGateConfig, config: Mapping[str, Any], train: Rows, held_out: Sequence[Rows]
) -> dict[str, list[float]]:
  """The measures of all runs."""
  rates, seeds = runs_of(config)
  keys = jax.vmap(jax.random.key)(seeds)
  make = lambda key: TwoTasks(gate, config["width"], nnx.Rngs(params=key))  # noqa: E731
  graph, params = nnx.graphdef(make(keys[0])), jax.vmap(lambda key: nnx.state(make(key)))(keys)
  memory = jax.vmap(optax.adam(0.0).init)(params)
  centre, task_weights = float(train.rating[train.rating > 0].mean()), np.array(config["task_weights"])
  rows = {"user": train.user, "film": train.film, "watched": train.rating > 0, "rating": train.rating - centre}
  weights: list[np.ndarray] = []
  best: list[dict[str, float]] = [{} for _ in seeds]
  for number in range(config["epochs"]):
    orders = np.stack([_batches(len(train), config["batch"], (int(seed), number)) for seed in seeds])
    (params, memory), seen = _epoch(graph, tuple(task_weights), params, memory, rates, orders, rows)
    weights.append(np.asarray(seen))  # [runs, steps, 2, E]
    predicted = [np.asarray(_predicted(graph, params, each.user, each.film)) for each in held_out]
    for run, (of_validation, of_test) in enumerate(zip(*predicted)):
      validation = scores(of_validation, held_out[0], centre, task_weights)["loss"]
      if number == 0 or validation < best[run]["validation"]:
        best[run] = {"validation": validation, **scores(of_test, held_out[1], centre, task_weights)}
  moved = [movement(one) for one in np.concatenate(weights, 1)]
  return {name: [one[name] for one in of] for of in (best, moved) for name in of[0]}


def _batches(rows: int, batch: int, seed: tuple[int, int]) -> np.ndarray:
  """Int `[steps, batch]`: the rows of an epoch's steps, in random order; those that fill no batch are left out."""
  steps = rows // batch
  return np.random.default_rng(seed).permutation(rows)[: steps * batch].reshape(steps, batch)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _epoch(
  graph: nnx.GraphDef,
  task_weights: tuple[float, float],
  params: nnx.State,
  memory: Any,
  rates: jax.Array,
  orders: jax.Array,
  rows: Mapping[str, jax.Array],
) -> tuple[Any, jax.Array]:
  """One pass of all runs over the rows, each in its order: parameters and memory after it, and the gates' weights."""

  def loss(params: nnx.State, rows: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    (watch, rating), weight, added = nnx.merge(graph, params)(rows["user"], rows["film"])
    entropy = optax.sigmoid_binary_cross_entropy(watch, rows["watched"]).mean()
    error = jnp.square(rating - rows["rating"]).mean(where=rows["watched"])
    return task_weights[0] * entropy + task_weights[1] * error + added, weight

  @jax.vmap
  def run(params: nnx.State, memory: Any, rate: jax.Array, order: jax.Array) -> tuple[Any, jax.Array]:
    def step(carry: Any, which: jax.Array) -> tuple[Any, jax.Array]:
      params, memory = carry
      gradients, weight = jax.grad(loss, has_aux=True)(params, {name: values[which] for name, values in rows.items()})
      updates, memory = optax.adam(rate).update(gradients, memory)
      return (optax.apply_updates(params, updates), memory), weight

    return jax.lax.scan(step, (params, memory), order)

  return run(params, memory, rates, orders)


@functools.partial(jax.jit, static_argnums=0)
def _predicted(graph: nnx.GraphDef, params: nnx.State, user: jax.Array, film: jax.Array) -> jax.Array:
  """The predictions of all runs, one after the other, `[runs, 2, N]`."""
  return jax.lax.map(lambda one: nnx.merge(graph, one)(user, film)[0], params)


def scores(predicted: np.ndarray, rows: Rows, centre: float, task_weights: np.ndarray) -> dict[str, float]:
  """The task-weighted loss, the area under the ROC curve of the first task, and the squared error of the second.

  Args:
    predicted: `[2, N]`, the logits of having watched the film, and its ratings less `centre`.
    rows: of which only those with a rating count for the second task.
    centre: the mean rating of the training split.
    task_weights: `[2]`.
  """
  watched, (watch, rating) = rows.rating > 0, predicted.astype(float)
  entropy = np.logaddexp(0, np.where(watched, -watch, watch)).mean()
  error = np.square(rating + centre - rows.rating)[watched].mean()
  auc = roc_auc_score(watched, np.nan_to_num(watch))
  return {"loss": float(task_weights @ [entropy, error]), "auc": float(auc), "mse": float(error)}


def movement(weights: np.ndarray) -> dict[str, float]:
  """How the weights of gates `[steps, tasks, E]` move: their variance in the second half, and the largest change."""
  late = weights[len(weights) // 2 :]
  return {"variance": float(late.var(0).sum(-1).mean()), "jump": float(np.abs(np.diff(weights, axis=0)).max())}
