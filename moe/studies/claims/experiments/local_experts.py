"""Do experts that compete learn in half the epochs of back-propagation? Jacobs, Jordan, Nowlan and Hinton 1991."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe.nn.linear import affine
from moe.routing.methods.adaptive_mixture import competitive_loss, cooperative_loss, mixture_loss
from moe.studies.claims.experiments.formants import Cases, segments, vowels
from moe.studies.claims.experiments.tuned import Plan, TunedExperiments
from moe.studies.contrasts import Contrast, answer_to, corrected, headline, sentence
from moe.studies.study import Headline, Result

_CRITERIA = {"vowels": 0.06, "segments": 3.0}  # mean squared error of an output, over the training set
_START = 0.5  # weights begin uniform between minus this and this
_LOSSES = {"cooperative": cooperative_loss, "competitive": competitive_loss, "mixture": mixture_loss}

Weights = dict[str, jax.Array]


def _mixture(problem: str, loss: str, experts: int) -> dict[str, Any]:
  return {"problem": problem, "loss": loss, "experts": experts, "hidden": 0}


def _network(problem: str, hidden: int) -> dict[str, Any]:
  """A back-propagation network: one expert with a hidden layer, and no gate."""
  return {"problem": problem, "loss": "cooperative", "experts": 1, "hidden": hidden}


_ARMS = {
  "mixture of 4": _mixture("vowels", "mixture", 4),
  "mixture of 8": _mixture("vowels", "mixture", 8),
  "cooperating 4": _mixture("vowels", "cooperative", 4),
  "competing 4": _mixture("vowels", "competitive", 4),
  "network of 8": _network("vowels", 8),
  "network of 17": _network("vowels", 17),
  "segments, mixture of 2": _mixture("segments", "mixture", 2),
  "segments, cooperating 2": _mixture("segments", "cooperative", 2),
  "segments, competing 2": _mixture("segments", "competitive", 2),
  "segments, network of 2": _network("segments", 2),
}
_PLANS = {
  "smoke": Plan(rates=(4.0,), tuning=1, seeds=2, sizes={"epochs": 20}),
  "cpu": Plan(rates=tuple(2.0**n for n in range(-3, 7)), tuning=3, seeds=25, sizes={"epochs": 1000}),
}
_MEASURES = {
  "epochs": "epochs",
  "reached": "share that gets there",
  "training": "accuracy or error in training",
  "test": "in testing",
}
_HALF = 1.5  # times fewer epochs are about half of them


class LocalExperts(TunedExperiments, name="local_experts"):
  """Linear experts with a linear gate against networks of one hidden layer; all weights are trained on all cases.

  The vowels: 75 speakers, 50 of them to train, say four vowels twice. The formants are drawn from normal distributions
  with published means and covariances, independently for given group and vowel, and standardised. Outputs are logistic,
  one for each vowel. 4 experts have 60 weights as the network of 8 hidden units has, 8 experts 120 where that of 17 has
  123. The regression: y = 5 (x + 1) below 0 and 5 (x - 1) above, with noise of the variance 1 that the mixture assumes;
  2 experts have 8 weights and the network 7. Every seed has a problem and initial weights of its own.

  Training is gradient descent without momentum, a step an epoch, until the mean squared error of the mixed output
  over the training set is down at the criterion. That of the vowels, 0.06, is below the 0.0625 of a system that never
  tells [a] from [A] and makes no other error; that of the regression leaves a quarter of the variance beside the
  noise. A run that does not get there in the epochs that it may take is censored; of a network, it counts as if it
  had in the last one, in favour of the network. An arm's step size is that of the fewest epochs in the mean over
  seeds of their own.

  "About half" is read as more than 1.5 times fewer epochs: the primary contrast, 4 experts that learn by the
  likelihood of their mixture against the network of equal size on vowels, holds if the whole interval is above that.
  """

  claim = "A mixture of local experts reaches the criterion in about half the epochs of a network of equal size."
  source = "Jacobs et al. 1991, Neural Computation 3(1), table 1: 1,124 and 1,083 against 2,209 and 2,435 epochs"
  plans = _PLANS
  arms = _ARMS
  chosen_by = "epochs"
  measures = _MEASURES
  contrasts = (
    Contrast("mixture of 4", "network of 8", "steps", _HALF),
    Contrast("mixture of 8", "network of 17", "steps", _HALF),
    Contrast("mixture of 4", "cooperating 4", "steps", 1.0),
    Contrast("mixture of 4", "competing 4", "steps", 1.0),
    Contrast("segments, mixture of 2", "segments, network of 2", "steps", _HALF),
    Contrast("segments, mixture of 2", "segments, cooperating 2", "steps", 1.0),
    Contrast("segments, mixture of 2", "segments, competing 2", "steps", 1.0),
  )
  asked = ()

  def experiment(self, config: Mapping[str, Any]) -> dict[str, Any]:
    system = System(config["loss"], config["experts"], config["hidden"], config["problem"] == "vowels")
    cases = [_PROBLEMS[config["problem"]](seed) for seed in config["seeds"]]
    train, test = (Cases(*(jnp.asarray(np.stack(one)) for one in zip(*part))) for part in zip(*cases))
    weights = jax.vmap(lambda seed: system.init(jax.random.key(seed), *train[0].shape[-1:], *train[1].shape[-1:]))(
      jnp.asarray(config["seeds"])
    )
    criterion, limit = _CRITERIA[config["problem"]], config["epochs"]
    epochs, weights = train_all(system, train, weights, jnp.asarray(config["rates"]), criterion, limit)
    found = {"epochs": jnp.where(epochs < 0, limit, epochs), "reached": epochs >= 0}
    found |= {"training": _quality(system, weights, train), "test": _quality(system, weights, test)}
    return {name: np.asarray(values, float).tolist() for name, values in found.items()}

  def analyse(self, budget: str, results: Sequence[Result]) -> dict[str, Any]:
    compared = {one.tags["arm"]: one for one in results if one.tags["use"] == "compared"}
    answers = []
    for one in self.contrasts:
      if one.arm in compared and one.baseline in compared:
        sides = {one.arm: runs_of(compared[one.arm], target=False)}
        sides[one.baseline] = runs_of(compared[one.baseline], target=True)
        answers.append(answer_to(one, sides))
    return super().analyse(budget, results) | {"contrasts": corrected([one for one in answers if one])}

  def lines(self, analysis: Mapping[str, Any]) -> list[str]:
    table = super().lines({**analysis, "contrasts": []})
    return [*table, *(_of_epochs(sentence(one)) for one in analysis["contrasts"])]

  def headline(self, analysis: Mapping[str, Any]) -> Headline | None:
    return headline(analysis["contrasts"], None)


def runs_of(result: Result, *, target: bool) -> dict[int, Result]:
  """A run for each seed, with the criterion as loss 1 at the epoch where it is reached.

  Args:
    result: of all seeds.
    target: whether these set the target, so that one that misses it has reached it in its last epoch.
  """
  runs, found = {}, zip(result.config["seeds"], result.measured["epochs"][0], result.measured["reached"][0])
  for seed, epochs, reached in found:
    step = max(1, int(epochs))
    curve = [{"step": step, "loss": 1.0 if reached or target else np.inf}]
    runs[seed] = dataclasses.replace(result, step=step, curve=curve)
  return runs


def _of_epochs(line: str) -> str:
  return line.replace("times fewer steps than", "times fewer epochs than").replace(" for its final loss", "")


_PROBLEMS = {"vowels": vowels, "segments": segments}


@dataclasses.dataclass(frozen=True)
class System:
  """Experts and their gate.

  Attributes:
    loss: name of what they learn by.
    experts: one has no gate.
    hidden: units of each expert's hidden layer, which is the same for all; 0 for linear ones.
    logistic: whether outputs are.
  """

  loss: str
  experts: int
  hidden: int
  logistic: bool

  def init(self, key: jax.Array, inputs: int, outputs: int) -> Weights:
    """Matrices whose last row is the bias."""
    shapes: dict[str, tuple[int, ...]] = {"out": (self.experts, (self.hidden or inputs) + 1, outputs)}
    shapes |= {"hidden": (inputs + 1, self.hidden)} if self.hidden else {}
    shapes |= {"gate": (inputs + 1, self.experts)} if self.experts > 1 else {}
    keys = jax.random.split(key, len(shapes))
    return {
      name: jax.random.uniform(one, shape, minval=-_START, maxval=_START)
      for one, (name, shape) in zip(keys, shapes.items())
    }

  def __call__(self, weights: Weights, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The gate's probabilities `[n, E]` and all experts' outputs `[n, E, d]`, of inputs `[n, k]`."""
    hidden = jax.nn.sigmoid(affine(x, weights["hidden"])) if self.hidden else x
    outputs = jax.vmap(affine, (None, 0), 1)(hidden, weights["out"])
    logits = affine(x, weights["gate"]) if self.experts > 1 else jnp.zeros((len(x), 1))
    return jax.nn.softmax(logits), jax.nn.sigmoid(outputs) if self.logistic else outputs


@functools.partial(jax.jit, static_argnames=("system", "criterion", "limit"))
def train_all(
  system: System, cases: Cases, weights: Weights, rates: jax.Array, criterion: float, limit: int
) -> tuple[jax.Array, Weights]:
  """Trains every seed with every rate until it is down at the criterion.

  Args:
    system: what is trained.
    cases: of all seeds, `[S, n, ...]`.
    weights: at the start, `[S, ...]`.
    rates: step sizes, `[R]`.
    criterion: a mean squared error.
    limit: updates at most.

  Returns:
    How many updates it took, int32 `[R, S]`, -1 where it is not there; and the last weights `[R, S, ...]`.
  """

  def loss(weights: Weights, cases: Cases) -> tuple[jax.Array, jax.Array]:
    probs, outputs = system(weights, cases.inputs)
    each = _LOSSES[system.loss](probs, outputs, cases.targets)
    return each.mean(), cooperative_loss(probs, outputs, cases.targets).mean() / cases.targets.shape[-1]

  slopes = jax.vmap(jax.vmap(jax.grad(loss, has_aux=True)), (0, None))

  def update(state: tuple[jax.Array, jax.Array, Weights]) -> tuple[jax.Array, jax.Array, Weights]:
    epoch, reached, weights = state
    slope, error = slopes(weights, cases)
    reached = jnp.where((reached < 0) & (error <= criterion), epoch, reached)
    size = jnp.where(reached < 0, rates[:, None], 0.0)
    moved = jax.tree.map(lambda w, s: w - size.reshape(*size.shape, *[1] * (w.ndim - 2)) * s, weights, slope)
    return epoch + 1, reached, moved

  start = jax.tree.map(lambda w: jnp.broadcast_to(w, (len(rates), *w.shape)), weights)
  none = jnp.full((len(rates), len(cases.inputs)), -1)
  goes_on = lambda state: (state[0] <= limit) & (state[1] < 0).any()  # noqa: E731
  _, reached, found = jax.lax.while_loop(goes_on, update, (jnp.int32(0), none, start))
  return reached, found


@functools.partial(jax.jit, static_argnames="system")
def _quality(system: System, weights: Weights, cases: Cases) -> jax.Array:
  """`[R, S]`, the share of right vowels; of the regression the mean squared error."""

  def one(weights: Weights, cases: Cases) -> jax.Array:
    probs, outputs = system(weights, cases.inputs)
    if not system.logistic:
      return cooperative_loss(probs, outputs, cases.targets).mean()
    mixed = jnp.einsum("ne,ned->nd", probs, outputs)
    return (mixed.argmax(-1) == cases.targets.argmax(-1)).mean()

  return jax.vmap(jax.vmap(one), (0, None))(weights, cases)
