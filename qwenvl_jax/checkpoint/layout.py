"""The names of the files and folders in the folder of a run, whoever writes them."""

CONFIG = "config.json"  # written first
IMPORTED_CONFIG = "imported_config.json"  # of imported weights: the config that their release states
LINEAGE = "lineage.json"  # written last of all files that a new run begins with
FROZEN = "frozen"  # the weights that the stage does not train
CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
EVALUATIONS = "evaluations.jsonl"  # what was measured while it trained (`config.evaluation`)
ANSWERS = "answers"  # to benchmarks that were asked while it trained
EVENTS = "events"  # TensorBoard's files
LEDGER = "ledger.jsonl"  # where the time of all starts went
PROFILE = "profile"  # traces of the devices
REPORT = "report.html"
WANDB = "wandb_run"  # the id of the run at Weights & Biases
COMPILATION_CACHE = "compilation_cache"  # compiled programs, for the next start
STACKS = "stacks"  # of the threads of all processes, when a run hung; a run may begin in a folder that has them
ANOMALIES = "anomalies"  # batches of steps that were left out

ALL = (CONFIG, LINEAGE, FROZEN, CHECKPOINTS, METRICS, EVALUATIONS, ANSWERS, EVENTS, ANOMALIES)
