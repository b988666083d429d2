"""costprof inside the models people run: transformers, vLLM, SGLang. None of them is imported."""

from costprof.runtime.integrations.attachment import Attached, attach, detach
from costprof.runtime.integrations.records import LayerRecord, RouterBypassedWarning, Summary

__all__ = ["Attached", "LayerRecord", "RouterBypassedWarning", "Summary", "attach", "detach"]
