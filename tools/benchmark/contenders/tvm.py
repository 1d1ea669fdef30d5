"""TVM as it comes: its ONNX front end, its default pipeline and its virtual machine; and the same after a search."""

from __future__ import annotations

import os
import shutil
import warnings
from typing import Any

import numpy as np

from runnel.tools.benchmark.case import Array
from runnel.tools.benchmark.contenders.base import CannotRun, Contender, StepRun, signature

TRIALS = "RUNNEL_BENCH_TRIALS"  # how many measurements a search may make; 0: only logs of earlier runs count
MOST_MACS = 3e6  # of a step that is searched for: more takes longer than a bench should


class Step(StepRun):
    """The virtual machine's main function; states go from outputs to inputs as TVM's own tensors."""

    def convert(self) -> None:
        if self.case.codes:
            raise CannotRun("its front end turns codes into float32")
        warnings.filterwarnings("ignore")
        import onnx
        import tvm
        from tvm import relax
        from tvm.relax.frontend.onnx import from_onnx

        self.tvm: Any = tvm
        path = self.case.place / ("plain.onnx" if (self.case.place / "plain.onnx").exists() else "step.onnx")
        self.given, self.made = signature(path)
        try:
            module = from_onnx(onnx.load(path))
            target = tvm.target.Target({"kind": "llvm", "mcpu": processor(tvm), "num-cores": 1})
            built = tvm.compile(self.optimised(module, target), target=target)
        except CannotRun:
            raise
        except Exception as error:  # tvm raises many types about a model
            raise CannotRun(str(error).strip().splitlines()[-1][:200]) from None
        self.machine = relax.VirtualMachine(built, tvm.cpu())
        self.main = self.machine["main"]
        self.places = [(self.given.index(s.given), self.made.index(s.made)) for s in self.case.states]

    def optimised(self, module: Any, target: Any) -> Any:
        return module

    def reset(self) -> None:
        values = {s.given: self.case.start(s) for s in self.case.states}
        values[self.case.input] = self.pieces[0]
        self.inputs = [self.tvm.runtime.tensor(np.ascontiguousarray(values[name])) for name in self.given]

    def give(self, x: Array) -> None:
        self.inputs[self.given.index(self.case.input)] = self.tvm.runtime.tensor(x)

    def held(self) -> list[Any]:
        return [self.inputs[i] for i, _ in self.places]

    def take(self, held: Any) -> None:
        for (i, _), value in zip(self.places, held):
            self.inputs[i] = value

    def advance(self) -> None:
        self.values = self.main(*self.inputs)
        for i, o in self.places:
            self.inputs[i] = self.values[o]

    def results(self) -> dict[str, Array]:
        values = self.values if len(self.made) > 1 else [self.values]
        return {name: values[o].numpy() for o, name in enumerate(self.made)}


class Tuned(Step):
    """With schedules that MetaSchedule found for this machine; what it found is kept beside the model."""

    def optimised(self, module: Any, target: Any) -> Any:
        from tvm import relax, transform

        with target:
            passes = [relax.transform.DecomposeOpsForInference(), relax.transform.CanonicalizeBindings()]
            module = transform.Sequential([*passes, relax.get_pipeline("zero")])(module)
        logs = self.case.place.parent.parent / "tuned" / self.case.place.name
        if not (logs / "done").exists():
            if trials() == 0:
                raise CannotRun("not searched for; leave --trials out")
            shutil.rmtree(logs, ignore_errors=True)
            search(module, target, str(logs))
            (logs / "done").touch()
        with target:
            return relax.transform.MetaScheduleApplyDatabase(str(logs))(module)

    def convert(self) -> None:
        if self.case.macs > MOST_MACS:
            raise CannotRun(f"a search is made for steps of up to {MOST_MACS:.0f} multiply-adds")
        if self.case.lanes > 1:
            raise CannotRun("a search is made for one stream")
        super().convert()


def search(module: Any, target: Any, logs: str) -> None:
    """MetaSchedule, building in this process: its own builders spend most of their time starting."""
    from tvm.ir.utils import derived_object
    from tvm.s_tir import meta_schedule as ms
    from tvm.s_tir.meta_schedule.builder.local_builder import default_build, default_export

    @derived_object
    class Builder(ms.builder.PyBuilder):
        def build(self, build_inputs: Any) -> Any:
            results = []
            for wanted in build_inputs:
                try:
                    built = default_export(default_build(wanted.mod, wanted.target, None))
                    results.append(ms.builder.BuilderResult(built, None))
                except Exception as error:
                    results.append(ms.builder.BuilderResult(None, str(error)[:500]))
            return results

    config = ms.runner.EvaluatorConfig(number=3, repeat=1, min_repeat_ms=20)
    ms.relax_integration.tune_relax(
        module, params={}, target=target, work_dir=logs, max_trials_global=trials(), num_trials_per_iter=32,
        builder=Builder(), runner=ms.runner.LocalRunner(timeout_sec=60, evaluator_config=config),
    )  # fmt: skip


def trials() -> int:
    """What the bench was told to spend on a search."""
    return int(os.environ.get(TRIALS, "0"))


def processor(tvm: Any) -> str:
    """LLVM's name of this processor."""
    return str(tvm.get_global_func("target.llvm_get_system_cpu")())


CONTENDERS = [Contender("TVM", "apache-tvm", Step), Contender("TVM, tuned", "apache-tvm", Tuned)]
