"""Optional packages of the report, asked for when they are first used."""

from functools import partial

from isthmus import _support

require = partial(_support.require, needed_by="the report", install="'isthmus[report]'")
