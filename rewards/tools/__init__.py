"""Tools that a policy may call: definitions, calls in an answer, and what comes with Weir."""

from rewards.tools.built_in import TOOL, definitions, open_tools
from rewards.tools.calls import CALL_FORMATS, BadCall, Call, CallFormat, Parsed, parse_calls
from rewards.tools.corpus import Corpus, Document, read_corpus
from rewards.tools.definitions import definition_of, distinct, read_definition
from rewards.tools.search import Index, Search, shown
from rewards.tools.toolbox import Arguments, Result, Tool, Toolbox, ToolError, Used, clean, complaint, error_message

__all__ = [
    "CALL_FORMATS",
    "TOOL",
    "Arguments",
    "BadCall",
    "Call",
    "CallFormat",
    "Corpus",
    "Document",
    "Index",
    "Parsed",
    "Result",
    "Search",
    "Tool",
    "ToolError",
    "Toolbox",
    "Used",
    "clean",
    "complaint",
    "definition_of",
    "definitions",
    "distinct",
    "error_message",
    "open_tools",
    "parse_calls",
    "read_corpus",
    "read_definition",
    "shown",
]
