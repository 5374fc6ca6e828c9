"""Translation: numba makes machine code of bound rules, with no more work than that takes.

numba is made for functions each of which is called from Python: it optimises every one with all that it
calls, again at every level of the tree of calls, and makes machine code of each. Here that is done once, for
the outermost function with all others in it. Importing this imports numba.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import numba
from numba.core import cgutils, codegen, typed_passes, types, untyped_passes
from numba.core.compiler import CompilerBase
from numba.core.compiler_machinery import PassManager
from numba.core.dispatcher import Dispatcher
from numba.np import arrayobj

from cbsim.base.record_types import type_of

OPTIONS: dict[str, Any] = {
    "boundscheck": True,
    "error_model": "python",
    "_nrt": False,
    "no_cfunc_wrapper": True,
    "no_cpython_wrapper": True,
}
"""`_nrt=False` with `forceinline` makes the core some twenty times as fast as plain `njit`: without reference
counts, LLVM keeps records in registers. Rules therefore allocate nothing."""
PASSES: tuple[Any, ...] = (
    untyped_passes.TranslateByteCode,
    untyped_passes.FixupArgs,
    untyped_passes.IRProcessing,
    untyped_passes.InlineClosureLikes,
    untyped_passes.DeadBranchPrune,
    untyped_passes.GenericRewrites,
    untyped_passes.RewriteDynamicRaises,
    untyped_passes.MakeFunctionToJitFunction,
    untyped_passes.ReconstructSSA,
    typed_passes.NopythonTypeInference,
    typed_passes.PreLowerStripPhis,
    typed_passes.NoPythonSupportedFeatureValidation,
    typed_passes.IRLegalization,
    typed_passes.AnnotateTypes,
    typed_passes.NativeLowering,
    typed_passes.NoPythonBackend,
)
"""Those of numba's passes that rules need."""

Finish = Callable[[FunctionType, bool], Any]
"""Called with a function and whether it is the outermost; gives what stands for it."""


def translate(
    twin: Callable[[Finish], Any], is_pasted: Callable[[FunctionType], bool], arguments: tuple[Any, ...]
) -> tuple[str, str, bytes]:
    """Name, type of result and object code of a function, as `MachineCode` takes them.

    `twin(finish)` gives the function, made of what `finish` gives for it and for all that it calls;
    `is_pasted` says which of those become part of their callers. Raises numba's own errors.
    """

    def finish(copy: FunctionType, is_outermost: bool) -> Any:
        pasted = is_pasted(copy) and not is_outermost
        translator = OutermostTranslator if is_outermost else Translator
        return numba.njit(copy, pipeline_class=translator, forceinline=pasted, **OPTIONS)

    dispatcher = twin(finish)
    with _few_kinds(), _no_addresses(), _brief_checks(), _no_garbage_collected():
        dispatcher.compile(tuple(map(type_of, arguments)))
    (made,) = dispatcher.overloads.values()
    return made.fndesc.llvm_func_name, str(made.fndesc.restype), made.library._get_compiled_object()


class InnerLibrary(codegen.JITCodeLibrary):
    """The code of a function that others call, as it is: whoever calls it is optimised with it."""

    def _optimize_functions(self, module: Any) -> None:
        module.data_layout = self._codegen._data_layout

    def finalize(self) -> None:
        """Leave it to the outermost function to link what this one calls."""
        self._finalize_dynamic_globals()
        self._final_module.__library = weakref.proxy(self)
        self._finalized = True


class OutermostLibrary(InnerLibrary):
    """The code of the outermost function, with that of all others."""

    def finalize(self) -> None:
        """Link, optimise, and make machine code; nothing is loaded here."""
        for library in _called_by(self, {}):
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._verify_declare_only_symbols()
        self._compiled_object = in_a_copy(self._machine_code)
        self._compiled = self._finalized = True

    def _machine_code(self) -> bytes:
        passes, builder = self._codegen._module_pass_manager()
        passes.run(self._final_module, builder)
        code: bytes = self._codegen._tm.emit_object(self._final_module)
        return code


def in_a_copy(work: Callable[[], bytes]) -> bytes:
    """What some work gives, done by a copy of this process, where the system makes one.

    LLVM is seconds in one call, in which this process would not hear Ctrl-C.
    """
    parent = os.getpid()
    source, target = os.pipe()
    try:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            copy = os.fork()
    except (OSError, AttributeError):  # too little memory, or Windows
        copy = -1
    if copy == 0:
        status = 1
        try:
            threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
            with os.fdopen(target, "wb") as stream:
                stream.write(work())
            status = 0
        finally:
            os._exit(status)
    os.close(target)
    with os.fdopen(source, "rb") as stream:
        if copy == -1:
            return work()
        try:
            given = stream.read()
        except BaseException:
            os.kill(copy, signal.SIGKILL)
            raise
        finally:
            _, status = os.waitpid(copy, 0)
    # What a copy that was killed has written may be half of it.
    return given if status == 0 else work()


def _end_with(parent: int) -> None:
    """End this process soon after its parent, however that ends."""
    while os.getppid() == parent:
        time.sleep(0.1)
    os._exit(1)


def _called_by(library: Any, found: dict[Any, None]) -> dict[Any, None]:
    """The libraries of all functions that those of a library call, each once."""
    for each in library._linking_libraries:
        if each not in found:
            found[each] = None
            _called_by(each, found)
    return found


class Translator(CompilerBase):
    """Translates a function that others call."""

    library: type[InnerLibrary] = InnerLibrary

    def compile_extra(self, func: Any) -> Any:
        """Translate a function, its code in a library of this kind."""
        self.state.library = self.library(self.state.targetctx.codegen(), func.__qualname__)
        self.state.library.enable_object_caching()
        return super().compile_extra(func)

    def define_pipelines(self) -> list[Any]:
        """The one list of passes."""
        passes: Any = PassManager("rules")
        for each in PASSES:
            passes.add_pass(each, each.__name__)
        passes.finalize()
        return [passes]


class OutermostTranslator(Translator):
    """Translates the outermost function."""

    library = OutermostLibrary


@contextmanager
def _few_kinds() -> Iterator[None]:
    """Pass whole numbers with 64 bits wherever they come from, so that no function is translated twice."""
    dispatcher: Any = Dispatcher
    get_call_template = dispatcher.get_call_template

    def of_wide(self: Any, args: Any, kws: Any) -> Any:
        _, kinds = self._compiler.fold_argument_types(args, kws)
        return get_call_template(self, tuple(map(_wide, kinds)), {})

    dispatcher.get_call_template = of_wide
    try:
        yield
    finally:
        dispatcher.get_call_template = get_call_template


def _wide(kind: Any) -> Any:
    if isinstance(kind, types.Omitted):
        kind = type_of(kind.value)
    kind = kind.literal_type if isinstance(kind, types.Literal) else kind
    return types.intp if isinstance(kind, types.Integer) else kind


@contextmanager
def _no_addresses() -> Iterator[None]:
    """Let numba go without the address of an environment, which only functions called from Python have."""
    engine: Any = codegen.JITCPUCodegen
    set_env = engine.set_env

    def set_env_if_there(self: Any, name: str, env: Any) -> None:
        if self._engine.get_global_value_address(name):
            set_env(self, name, env)

    engine.set_env = set_env_if_there
    try:
        yield
    finally:
        engine.set_env = set_env


@contextmanager
def _brief_checks() -> Iterator[None]:
    """Check an index by one comparison: taken to have no sign, what lies before a table is large, too.

    Indices from the end are rare, so that they get a branch of their own. Both spare a tenth of a run.
    """
    check, fix = cgutils.do_boundscheck, arrayobj.fix_integer_index

    def check_once(context: Any, builder: Any, index: Any, length: Any, axis: Any = None) -> None:
        with builder.if_then(builder.icmp_unsigned(">=", index, length), likely=False):
            context.call_conv.return_user_exc(builder, IndexError, ("index is out of bounds",))

    def fix_seldom(context: Any, builder: Any, kind: Any, index: Any, length: Any) -> Any:
        if not kind.signed:
            return fix(context, builder, kind, index, length)
        index = context.cast(builder, index, kind, types.intp)
        before = builder.block
        with builder.if_then(builder.icmp_signed("<", index, index.type(0)), likely=False):
            from_end, at_end = builder.add(index, length), builder.block
        fixed = builder.phi(index.type)
        fixed.add_incoming(index, before)
        fixed.add_incoming(from_end, at_end)
        return fixed

    cgutils.do_boundscheck, arrayobj.fix_integer_index = check_once, fix_seldom
    try:
        yield
    finally:
        cgutils.do_boundscheck, arrayobj.fix_integer_index = check, fix


@contextmanager
def _no_garbage_collected() -> Iterator[None]:
    """Look for garbage afterwards: nearly all objects made here stay, and looking takes a sixth."""
    is_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_on:
            gc.enable()
