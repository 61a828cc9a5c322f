"""The loss, and the compiled functions that train and evaluate on one batch."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from moe.models import ModelOutput
from moe.parallel.mesh import replicated, tracing_for
from moe.parallel.programs import program
from moe.routing.policy import policy_loss
from moe.training.optimization.parts import Frozen, keep_frozen, stop_gradients
from moe.training.state import TrainState, merge, shardings_of, split

Batch = dict[str, jax.Array]


class RunInputs(NamedTuple):
  """What a step takes beside its state and batch, from the host.

  Attributes:
    key: uint32 `[2]`, the data of the run's PRNG key.
    learning_rate: float32 scalar, of this step.
    source: parameters and routers' state that the run began with, if it is held to what they predict.
  """

  key: np.ndarray
  learning_rate: np.float32
  source: tuple[dict[str, Any], dict[str, Any]] | None = None


@jax.named_scope("vocabulary")
def token_sums(
  logits: jax.Array, targets: jax.Array, weights: jax.Array, byte_lengths: jax.typing.ArrayLike
) -> dict[str, jax.Array]:
  """Weighted sums over the target tokens of a batch, from which all means are computed.

  Args:
    logits: float `[B, T, V]`, converted to float32.
    targets: int32 `[B, T]`.
    weights: float32 `[B, T]`, 0 for a token without loss.
    byte_lengths: `[V]`, length of each token's text in bytes.

  Returns:
    float32 scalars, exact for counts below 2^24: `nll` in nats, `z`, the squared log normaliser (T5's logits z-loss),
    `correct`, `weight`, `bytes`.
  """
  nll, log_normaliser = token_losses(logits, targets)
  return {
    "nll": jnp.sum(weights * nll),
    "z": jnp.sum(weights * jnp.square(log_normaliser)),
    "correct": jnp.sum(weights * (jnp.argmax(logits, axis=-1) == targets)),
    "weight": jnp.sum(weights),
    "bytes": jnp.sum(weights * jnp.asarray(byte_lengths, jnp.float32)[targets]),
  }


@jax.named_scope("vocabulary")
def token_losses(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
  """float32 `[B, T]`: the cross-entropy of each target in nats, and the log normaliser of its logits."""
  logits = logits.astype(jnp.float32)
  log_normaliser = jax.nn.logsumexp(logits, axis=-1)
  return log_normaliser - jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0], log_normaliser


@jax.named_scope("vocabulary")
def divergence(old: jax.Array, new: jax.Array) -> jax.Array:
  """float32 `[B, T]`: KL(old || new) in nats, between what two logits `[B, T, V]` predict."""
  old, new = (jax.nn.log_softmax(logits.astype(jnp.float32)) for logits in (old, new))
  return jnp.sum(jnp.exp(old) * (old - new), axis=-1)


def policies_loss(output: ModelOutput, batch: Batch, whole: Mapping[str, jax.Array] | None = None) -> jax.Array:
  """The loss of all routers trained by REINFORCE; 0 if there is none.

  A decoder's token costs the cross-entropy of its target and counts by the weight of that; an encoder's costs the mean
  over the weighted targets of its row, and does not count if there are none.

  Args:
    output: of the model.
    batch: that it has read.
    whole: by stack, how much the tokens of the whole batch count (`policy_weights`, summed, at least 1), of which this
      is a micro-batch: its share of the loss is returned. None for a whole batch.
  """
  total = jnp.zeros(())
  weights_of = policy_weights(batch)
  for side, policy in output.policy.items():
    if policy is None:
      continue
    cost, _ = token_losses(output.logits, batch["targets"])
    weights = weights_of[side]
    if side == "encoder":
      of_target = batch["loss_weights"]
      of_row = of_target.sum(1, keepdims=True)
      mean = (cost * of_target).sum(1, keepdims=True) / jnp.where(of_row > 0, of_row, 1.0)
      cost = jnp.broadcast_to(mean, weights.shape)
    share = 1.0 if whole is None else jnp.maximum(weights.sum(), 1.0) / whole[side]
    total += share * policy_loss(policy, cost, weights)
  return total


def policy_weights(batch: Batch) -> dict[str, jax.Array]:
  """float32 `[B, T]` of each stack that reads the batch: how much a token counts in the loss of its routers' policy."""
  weights = {"decoder": batch["loss_weights"]}
  if "inputs_segments" in batch:
    has_targets = batch["loss_weights"].sum(1, keepdims=True) > 0
    weights["encoder"] = ((batch["inputs_segments"] > 0) & has_targets).astype(jnp.float32)
  return weights


def bits_per_byte(nll: jax.typing.ArrayLike, text_bytes: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
  """Converts nats over a text to bits per byte, which compares between vocabularies and with compressors."""
  return nll / (math.log(2) * text_bytes)


def make_train_step(
  graph: nnx.GraphDef,
  state: TrainState,
  optimizer: optax.GradientTransformation,
  *,
  accumulation: int,
  logits_z_loss: float,
  byte_lengths: jax.typing.ArrayLike,
  kl_loss: float = 0.0,
  frozen: Frozen = lambda path: False,
) -> jax.stages.Wrapped:
  """The compiled step: `(state, batch, run) -> (state, metrics)`. It consumes the state it is given.

  Only the shardings of `state` are used, so its shapes will do; batches come from `put_batch` on the same mesh. `run`
  is a `RunInputs`: what differs between runs of one model is an argument, so that they share one program. `kl_loss`
  weights the divergence from what `run.source` predicts, without dropout and routed as in evaluation. Parameters and
  routers' state are left as they are where they are `frozen`.

  The metrics are device arrays: `loss`, the cross-entropy alone in nats per weighted target token; `logits_z_loss` and
  `auxiliary_loss`, the routers' and the divergence, as weighted in the objective; `bits_per_byte`; `accuracy`;
  `gradient_norm`, before clipping; `learning_rate`; `target_tokens`, weighted; `bytes` of their text; `tokens`, the
  encoder's and decoder's without padding; `layers`, the routers' metrics by stack and name, one row per layer;
  `layer_tokens`, those of each stack.

  A batch in several micro-batches gives the loss and the gradient of the whole: what is a mean over tokens in each is
  weighted by its share of these tokens. Routers decide on one micro-batch at a time, by the state from before the step;
  their state moves once, after all.
  """

  def objective(params, router_state, micro, micro_key, whole, source):
    params = stop_gradients(params, frozen)
    output = merge(graph, params, router_state)(micro, training=True, key=micro_key)
    sums = token_sums(output.logits, micro["targets"], micro["loss_weights"], byte_lengths)
    share = {name: tokens / whole.tokens[name] for name, tokens in tokens_by_stack(micro).items()}
    of_policies = policies_loss(output, micro, whole.policies)
    auxiliary_loss = sum((share[name] * loss for name, loss in output.auxiliary_losses.items()), start=of_policies)
    if kl_loss:
      old = merge(graph, *source)(micro, training=False, key=None)
      moved = divergence(old.logits, output.logits)
      auxiliary_loss += kl_loss * jnp.sum(micro["loss_weights"] * moved) / whole.weight
    value = (sums["nll"] + logits_z_loss * sums["z"]) / whole.weight + auxiliary_loss
    layers = times_by_stack(output.metrics, share)
    return value, ({"sums": sums, "auxiliary_loss": auxiliary_loss, "layers": layers}, output.seen)

  gradient = jax.grad(objective, has_aux=True)
  shardings, mesh = shardings_of(state), cast(Any, state.step.sharding).mesh

  def accumulate(state, batch, step_key, whole, source):
    """Gradients and reports of the whole batch, and what its micro-batches have shown the routers, `[M, ...]`."""
    micros = micro_batches(batch, accumulation)

    def one(index, micro):
      grads, (report, seen) = gradient(
        state.params, state.router_state, micro, jax.random.fold_in(step_key, index), whole, source
      )
      return (grads, report), seen

    first = jax.tree.map(lambda x: x[0], micros)
    if accumulation == 1:
      total, seen = one(0, first)
      return *total, jax.tree.map(lambda x: x[None], seen)

    def body(total, scanned):
      new, seen = one(*scanned)
      return jax.tree.map(jnp.add, total, new), seen

    # From zeros, so that the program has the model once.
    grads, report = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, 0, first)[0])
    start = jax.lax.with_sharding_constraint(grads, shardings.params), report
    total, seen = jax.lax.scan(body, start, (jnp.arange(accumulation), micros))
    return *total, seen

  def step(state: TrainState, batch: Batch, run: RunInputs):
    whole = _whole(batch)
    step_key = jax.random.fold_in(jax.random.wrap_key_data(jnp.asarray(run.key)), state.step)
    with tracing_for(mesh):
      grads, report, seen = accumulate(state, batch, step_key, whole, run.source)
      router_state = keep_frozen(state.router_state, _learned(graph, state, seen), frozen)
    with jax.named_scope("optimizer"):
      updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
      params = optax.apply_updates(state.params, jax.tree.map(lambda update: -run.learning_rate * update, updates))
      params = keep_frozen(state.params, params, frozen)  # also from weight decay, where a part is frozen
    sums = report["sums"]
    metrics = {
      "loss": sums["nll"] / whole.weight,
      "logits_z_loss": logits_z_loss * sums["z"] / whole.weight,
      "auxiliary_loss": report["auxiliary_loss"],
      "bits_per_byte": bits_per_byte(sums["nll"], jnp.maximum(sums["bytes"], 1.0)),
      "accuracy": sums["correct"] / whole.weight,
      "gradient_norm": optax.tree.norm(grads),
      "learning_rate": run.learning_rate,
      "target_tokens": sums["weight"],
      "bytes": sums["bytes"],
      "tokens": real_tokens(batch),
      "layers": report["layers"],
      "layer_tokens": tokens_by_stack(batch),
    }
    return TrainState(state.step + 1, params, router_state, opt_state), metrics

  return jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))


def make_eval_step(
  graph: nnx.GraphDef, byte_lengths: jax.typing.ArrayLike, *, accumulation: int, mesh: Mesh
) -> Callable[[dict, dict, Batch], dict[str, Any]]:
  """The compiled evaluation: `(params, router_state, batch) -> sums`.

  The sums are those of `token_sums`; `layer_tokens`, the tokens of each stack; and `layers`, the routers' metrics times
  these. A batch is divided into the micro-batches of training, because a routing group may be a whole one.
  """

  def step(params, router_state, batch):
    def one(micro):
      output = merge(graph, params, router_state)(micro, training=False, key=None)
      tokens = tokens_by_stack(micro)
      sums = token_sums(output.logits, micro["targets"], micro["loss_weights"], byte_lengths)
      return sums | {"layers": times_by_stack(output.metrics, tokens), "layer_tokens": tokens}

    with tracing_for(mesh):
      return jax.tree.map(lambda each: each.sum(0), jax.lax.map(one, micro_batches(batch, accumulation)))

  made_of = graph, np.asarray(byte_lengths).tobytes(), accumulation, mesh
  return program(("evaluation", *made_of), lambda: jax.jit(step, out_shardings=replicated(mesh)))


def micro_batches(batch: Batch, count: int) -> Batch:
  """`[B, ...]` to `[count, B / count, ...]`: row `i` goes to micro-batch `i % count`.

  Dealt in turn, rows stay on their devices, and the same rows share a micro-batch on any number of devices.
  """
  return {name: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1) for name, x in batch.items()}


def tokens_by_stack(batch: Batch) -> dict[str, jax.Array]:
  """How many tokens a stack of this name reads that are not padding, int32 scalars.

  An encoder reads the inputs or, in a batch without any, the targets, as a decoder does.
  """
  targets = batch["targets_segments"]
  read = {"encoder": batch.get("inputs_segments", targets), "decoder": targets}
  return {stack: jnp.sum(segments > 0) for stack, segments in read.items()}


def real_tokens(batch: Batch) -> jax.Array:
  """The number of tokens of inputs and targets that are not padding."""
  segments = [value for name, value in batch.items() if name.endswith("_segments")]
  return sum((jnp.sum(value > 0) for value in segments), start=jnp.zeros((), jnp.int32))


def times_by_stack(layers: dict[str, Any], factors: dict[str, jax.Array]) -> dict[str, Any]:
  """Routers' metrics by stack and name, times a factor for each stack."""
  return {stack: {name: factors[stack] * x for name, x in metrics.items()} for stack, metrics in layers.items()}


class _Whole(NamedTuple):
  """What the means over a batch in several micro-batches are divided by, at least 1.

  Attributes:
    weight: of its target tokens.
    tokens: of each stack.
    policies: of each stack, the weights of its tokens in the loss of policies.
  """

  weight: jax.Array
  tokens: dict[str, jax.Array]
  policies: dict[str, jax.Array]


def _whole(batch: Batch) -> _Whole:
  tokens = {name: jnp.maximum(tokens, 1) for name, tokens in tokens_by_stack(batch).items()}
  policies = {name: jnp.maximum(jnp.sum(weights), 1.0) for name, weights in policy_weights(batch).items()}
  return _Whole(jnp.maximum(jnp.sum(batch["loss_weights"]), 1.0), tokens, policies)


@jax.named_scope("router")
def _learned(graph: nnx.GraphDef, state: TrainState, seen: dict[str, Any]) -> dict[str, Any]:
  """The routers' state after a step in whose micro-batches they have seen this."""
  model = merge(graph, state.params, state.router_state)
  for name, of_stack in seen.items():
    getattr(model, name).learn(of_stack)
  return split(model)[2]
