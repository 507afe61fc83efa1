"""XLA's flags for programs that run for less time than compiling them as users do takes, as most of the tests' do.

Without LLVM's optimisation and XLA's new emitters compiling takes a third of that.
"""

_FLAGS = (
    "backend_optimization_level=0",
    "llvm_disable_expensive_passes=true",
    "cpu_use_fusion_emitters=false",
    "cpu_parallel_codegen_split_count=1",
)
IN_A_HURRY = " ".join(f"--xla_{flag}" for flag in _FLAGS)
