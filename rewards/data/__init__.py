"""Rows of a user's data: files, folders and functions, checked once and read by index."""

from rewards.data.columns import Columns, ReadRow
from rewards.data.functions import DATA
from rewards.data.index import read_rows
from rewards.data.json_lines import read_file, record_of, records, sound_text, text_of
from rewards.data.messages import Message, question_of, read_messages, read_tools, read_tools_file, with_system
from rewards.data.open import open_file, open_source
from rewards.data.orders import Permutation, stable_hash
from rewards.data.similar import Twin, twins
from rewards.data.source import Row, Source
from rewards.data.splits import SPLITS, LeftOut, SplitRows, split_of, too_few
from rewards.data.table import RowTable, open_table

__all__ = [
    "DATA",
    "SPLITS",
    "Columns",
    "LeftOut",
    "Message",
    "Permutation",
    "ReadRow",
    "Row",
    "RowTable",
    "Source",
    "SplitRows",
    "Twin",
    "open_file",
    "open_source",
    "open_table",
    "question_of",
    "read_file",
    "read_messages",
    "read_rows",
    "read_tools",
    "read_tools_file",
    "record_of",
    "records",
    "sound_text",
    "split_of",
    "stable_hash",
    "text_of",
    "too_few",
    "twins",
    "with_system",
]
