"""Shared by the fine-tuning configs: T5's and Switch's recipe on the tasks of GLUE and SuperGLUE, in T5's text format.

The model, the vocabulary and the parameters are those of the run that `config.init.workdir` names, pretrained here or
converted by `python -m moe.convert`. The recipe is that of Raffel et al. (2020) and, for experts, of Fedus et al.
(2022, section 2.4): a constant learning rate, dropout of 0.1, and of 0.4 within experts. By default the best step is
chosen on a tenth of the training split; `--config.score.selection=published` chooses it on the validation split, as
papers do.
"""

from ml_collections import ConfigDict

# The eleven tasks of Zhou et al. 2022, table 2: steps of 128 examples, about 20 passes, but from 200 to 10,000.
STEPS = {
  "boolq": 1500,
  "cb": 200,
  "cola": 1300,
  "mnli": 10_000,
  "mrpc": 600,
  "qnli": 10_000,
  "qqp": 10_000,
  "rte": 400,
  "sst2": 10_000,
  "wic": 850,
  "wnli": 200,
}


def finetune(task: str, steps: int) -> ConfigDict:
  """The config of one task, or of a mixture of tasks.

  Args:
    task: name of one of the tasks of `moe/data/tasks`, or of any registered seqio task or mixture.
    steps: updates.
  """
  config = ConfigDict()
  config.seed = 0
  config.init = ConfigDict({"workdir": "", "step": "best"})

  config.model = ConfigDict()  # the pretrained one, with these changes
  config.model.dropout = 0.1
  config.model.expert_dropout = 0.4

  config.data = ConfigDict()
  config.data.source = ConfigDict({"name": "task", "task": task, "data_dir": ""})
  config.data.objective = "text_to_text"
  config.data.inputs_length = 512
  config.data.targets_length = 16
  config.data.batch_size = 128
  config.data.pack = False

  config.score = ConfigDict({"method": "rank", "selection": "held_out"})

  config.optimizer = ConfigDict()
  config.optimizer.name = "adafactor"
  config.optimizer.learning_rate = 1e-3  # relative to the size of each parameter, as T5's
  config.optimizer.schedule = ConfigDict({"name": "constant"})

  config.mesh = ConfigDict()

  config.train = ConfigDict()
  config.train.steps = steps
  config.train.log_every = max(steps // 50, 1)
  config.train.eval_every = max(steps // 10, 1)
  config.train.checkpoint_every = max(steps // 10, 1)
  return config
