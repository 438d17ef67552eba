"""Count code lines and tokens a code line: python tests/count_lines.py FILE...

A code line holds at least one token that is not a comment or a docstring. An f-string is one token.
"""

import io
import sys
import tokenize
from pathlib import Path

SKIP = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}
F_START = getattr(tokenize, "FSTRING_START", None)  # Python 3.12+ takes f-strings apart
F_END = getattr(tokenize, "FSTRING_END", None)


def count(source):
    """Source text -> (code lines, tokens)."""
    lines = set()
    tokens = 0
    depth = 0  # of f-strings
    statement_starts = True
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            statement_starts = True
        if token.type in SKIP:
            continue
        docstring = statement_starts and token.type == tokenize.STRING
        if docstring and token.line.strip().startswith(('"""', 'r"""', "'", '"')):
            statement_starts = False
            continue
        statement_starts = False
        lines.update(range(token.start[0], token.end[0] + 1))
        if token.type == F_END:
            depth -= 1
            continue
        tokens += depth == 0
        if token.type == F_START:
            depth += 1
    return len(lines), tokens


if __name__ == "__main__":
    for name in sys.argv[1:]:
        lines, tokens = count(Path(name).read_text(encoding="utf-8"))
        print(f"{name:24s} {lines:5d} code lines, {tokens / max(lines, 1):5.2f} tokens a line")
