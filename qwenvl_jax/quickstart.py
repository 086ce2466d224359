"""The whole system in miniature, on real data, from one command: `python -m qwenvl_jax.quickstart`.

Builds the data, trains the text stage and the three stages of the paper, evaluates every checkpoint on held-out
scenes, releases the last one to PyTorch with proof, and writes one report. Each step is the command that a
full-size run uses, started as a process with a config from `configs/quickstart`; nothing here is a second
code path. If it is interrupted, the same command continues: every step reuses the results that are complete.

With `--finetune` the model that these steps have made learns a kind of dialogue that it has never seen, by low-rank
adapters, and a report shows all scores before and after. With `--taste` one short stage learns captions and boxes of
pictures with one object: three minutes to a first picture with a predicted box. With `--size=100m` the stages train
100M parameters at 224 px, which needs a GPU.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
import time

from etils import epath

from qwenvl_jax.checkpoint import lineage
from qwenvl_jax.checkpoint.layout import CONFIG
from qwenvl_jax.checkpoint.steps import latest_step
from qwenvl_jax.runtime import artifacts, child, folder_lock, standard_streams, storage
from qwenvl_jax.runtime.arguments import Parser
from qwenvl_jax.runtime.errors import UserError, exit_on_user_error

STAGES = ("stage0_text", "stage1_pretrain", "stage2_multitask", "stage3_sft")
FINETUNE = "finetune_catalogue"
TASTE = "taste"
SIZES = ("small", "100m")  # those of configs/quickstart/sizes.py


@dataclasses.dataclass(frozen=True)
class Step:
    """One command of the quickstart: `title` is printed, `key` is for timings.json, `command` follows `python -m`.

    A step that is `beside` runs at the same time as the step before it, and on the CPU, so that the other has the
    devices.
    """

    key: str
    title: str
    command: tuple[str, ...]
    beside: bool = False

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables that its command needs."""
        return {"JAX_PLATFORMS": "cpu"} if self.beside else {}

    @property
    def by_hand(self) -> str:
        """The command as one would type it."""
        variables = (f"{name}={value}" for name, value in self.variables.items())
        return shlex.join((*variables, "python", "-m", *self.command))


def plan(workdir: str, data: str, source: str, scale: float, size: str = SIZES[0]) -> list[Step]:
    """The steps in order. Paths are written into the commands, so that each can be run by hand."""
    arguments = _arguments(workdir, data, scale) + (f",size={size}" if size != SIZES[0] else "")
    make_data: tuple[str, ...] = ("data_pipelines.quickstart", f"--output={data}", f"--source={source}")
    if scale != 1:
        make_data += (f"--train={max(64, round(12_000 * scale))}", f"--heldout={max(8, round(200 * scale))}")
    steps = [Step("data", "records from real pictures", make_data)]
    steps += [_training(stage, workdir, arguments) for stage in STAGES]
    steps += [
        Step(
            "evaluation",
            "scores of every stage on held-out scenes",
            ("qwenvl_jax.evaluate", f"--config=configs/quickstart/eval.py:{arguments}", f"--output={workdir}"),
        ),
        Step(
            "release",
            "release to PyTorch, with parity",
            ("qwenvl_jax.convert", "release", f"--workdir={workdir}/{STAGES[-1]}", f"--output={workdir}/release"),
            beside=True,  # it compiles most of the time, on one core
        ),
        Step("report", "report.html", ("qwenvl_jax.evaluate", "--report", f"--output={workdir}")),
    ]
    return steps


def plan_finetune(workdir: str, data: str, scale: float) -> list[Step]:
    """The steps that teach the finished model of `workdir` a new kind of dialogue, as `plan`."""
    arguments = _arguments(workdir, data, scale)
    make_data: tuple[str, ...] = (
        "data_pipelines.quickstart.catalogue",
        f"--input={data}",
        f"--output={data}_catalogue",
    )
    if scale != 1:
        make_data += (f"--train={max(64, round(4_000 * scale))}", f"--heldout={max(8, round(100 * scale))}")
    return [
        Step("data", "a new kind of dialogue", make_data),
        _training(FINETUNE, workdir, arguments),
        Step(
            "evaluation",
            "scores before and after",
            (
                "qwenvl_jax.evaluate",
                f"--config=configs/quickstart/eval_finetune.py:{arguments}",
                f"--output={workdir}/finetune",
            ),
        ),
        Step("report", "report.html", ("qwenvl_jax.evaluate", "--report", f"--output={workdir}/finetune")),
    ]


def plan_taste(workdir: str, data: str, source: str, scale: float) -> list[Step]:
    """The steps to a first picture with a box and a caption, as `plan`: fewer and easier pictures, one short stage."""
    arguments = _arguments(workdir, data, scale)
    scenes = (f"--train={max(64, round(2_500 * scale))}", f"--heldout={max(8, round(100 * scale))}")
    simple = ("--scene.max_objects=1", "--scene.stamp_count=8")
    return [
        Step(
            "data",
            "records from real pictures",
            ("data_pipelines.quickstart", f"--output={data}", f"--source={source}", *scenes, *simple),
        ),
        _training(TASTE, workdir, arguments),
        Step(
            "evaluation",
            "boxes and captions of held-out scenes",
            ("qwenvl_jax.evaluate", f"--config=configs/quickstart/eval_taste.py:{arguments}", f"--output={workdir}"),
        ),
        Step("report", "report.html", ("qwenvl_jax.evaluate", "--report", f"--output={workdir}")),
    ]


def _default_run(taste: bool, size: str) -> str:
    return "taste" if taste else "quickstart" if size == SIZES[0] else f"quickstart_{size}"


def _arguments(workdir: str, data: str, scale: float) -> str:
    """Those of every config in `configs/quickstart`."""
    return f"data={data},runs={workdir}" + (f",scale={scale}" if scale != 1 else "")


def _training(name: str, workdir: str, arguments: str) -> Step:
    config = f"--config=configs/quickstart/{name}.py:{arguments}"
    return Step(name, f"training {name}", ("qwenvl_jax.train", config, f"--workdir={workdir}/{name}"))


def running_folder(workdir: str) -> str:
    """The empty folder whose lock a quickstart has while it runs; `workdir` itself is locked by its evaluation."""
    return f"{workdir}/running"


def check_finished(workdir: str) -> None:
    """Raises UserError if the quickstart has not yet made the model in `workdir`, or only a part of its training."""
    run = storage.path(workdir) / STAGES[-1]
    started = storage.exists(run / CONFIG)
    steps = lineage.read_config(run).train.steps if started else 0
    step = latest_step(run) if started else None
    if step is None:
        raise UserError(f"{workdir} holds no {STAGES[-1]}, which is fine-tuned; run `make quickstart` first")
    if step < steps:
        raise UserError(
            f"{run} is trained up to step {step} of {steps}; run `make quickstart` again, which goes on there"
        )


def _groups(steps: list[Step]) -> list[list[Step]]:
    """The steps in their order, those that run at the same time in one list."""
    groups: list[list[Step]] = []
    for step in steps:
        if step.beside:
            groups[-1].append(step)
        else:
            groups.append([step])
    return groups


def run(steps: list[Step], workdir: epath.Path) -> None:
    """Runs the steps in their order; exits with the code of the first that fails. Leaves `timings.json`."""
    timings: dict[str, float] = {}
    began = time.monotonic()
    number = 0
    for group in _groups(steps):
        for step in group:
            number += 1
            print(f"\n[{number}/{len(steps)}] {step.title}\n    {step.by_hand}", flush=True)
        commands = [child.Command((sys.executable, "-m", *step.command), step.variables) for step in group]
        ended = child.run_together(commands)
        failed = [(step, end.code) for step, end in zip(group, ended, strict=True) if end.code]
        for step, code in failed:
            said = f"{step.title} ended with exit code {code}; run the same command again to continue"
            print(said, file=sys.stderr)
        if failed:
            sys.exit(failed[0][1])
        timings |= {step.key: round(end.seconds, 1) for step, end in zip(group, ended, strict=True)}
        done = " and ".join(f"{timings[step.key]:.0f} s" for step in group)
        print(f"    done in {done}, {time.monotonic() - began:.0f} s in all", flush=True)
    timings["total"] = round(time.monotonic() - began, 1)
    artifacts.write_json(workdir / "timings.json", timings)


def main(argv: list[str] | None = None) -> None:
    """Parses the command line and runs all steps."""
    standard_streams.make_lasting()
    parser = Parser("python -m qwenvl_jax.quickstart", __doc__)
    parser.add_argument("--workdir", default="", help="checkpoints, scores, release, report; default: runs/quickstart")
    parser.add_argument("--data", default="", help="records; default: data/quickstart or data/taste")
    parser.add_argument("--source", default="auto", help="where the pictures come from: auto, tuxpaint or rendered")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on records, steps and questions")
    parser.add_argument("--size", choices=SIZES, default=SIZES[0], help="100m: 100M parameters, for one GPU")
    variant = parser.add_mutually_exclusive_group()
    variant.add_argument("--finetune", action="store_true", help="teach the finished model a new kind of dialogue")
    variant.add_argument("--taste", action="store_true", help="boxes and captions in three minutes; in runs/taste")
    with exit_on_user_error():
        args = parser.parse_args(argv)
        args.workdir = args.workdir or f"runs/{_default_run(args.taste, args.size)}"
        args.data = args.data or ("data/taste" if args.taste else "data/quickstart")
        if args.size != SIZES[0] and (args.finetune or args.taste):
            raise UserError("--size is for the whole quickstart; leave it out with --finetune and --taste")
        if not 0 < args.scale <= 1000:  # refuses NaN as well
            raise UserError(f"--scale={args.scale} must be above 0 and at most 1000")
        other = STAGES[0] if args.taste else TASTE
        if storage.exists(storage.path(args.workdir) / other):
            raise UserError(f"{args.workdir} holds a run of {other}, whose scores would go; give another --workdir")
        output = f"{args.workdir}/finetune" if args.finetune else args.workdir
        if args.finetune:
            check_finished(args.workdir)
            steps = plan_finetune(args.workdir, args.data, args.scale)
        elif args.taste:
            steps = plan_taste(args.workdir, args.data, args.source, args.scale)
        else:
            steps = plan(args.workdir, args.data, args.source, args.scale, args.size)
        # Steps of another scale would change the records that this one's trainings read.
        refusal = f"another quickstart works in {args.workdir}; wait for its end, end it, or name another --workdir"
        running = running_folder(args.workdir)
        with (
            folder_lock.removed_if_empty(args.workdir),  # while another quickstart runs, it holds `running`
            folder_lock.locked(running, refusal),
            folder_lock.removed_if_empty(running),
        ):
            run(steps, storage.path(output))
    talk = "" if args.finetune or args.taste else "    talk to it: make chat"
    print(f"\nreport: {output}/report.html    scores: {output}/scores.json{talk}")


if __name__ == "__main__":
    main()
