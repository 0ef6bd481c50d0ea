"""Harmless families whose answers have a form: JSON, CSV, SQL, patterns, code, tables."""

from __future__ import annotations

import json
import random

Exchange = tuple[str, str]
_PEOPLE = ("Lena Vogt", "Omar Haddad", "Priya Nair", "Tom Becker", "Yuki Mori", "Ana Sousa")
_CITIES = ("Lisbon", "Oslo", "Nairobi", "Quito", "Hanoi", "Leeds", "Turin", "Perth")
_JOBS = ("nurse", "baker", "teacher", "plumber", "editor", "pilot", "gardener")
_TABLES = {
    "orders": ("id", "customer", "total", "created_at"),
    "books": ("id", "title", "author", "year"),
    "employees": ("id", "name", "department", "salary"),
    "rooms": ("id", "building", "seats", "floor"),
    "parcels": ("id", "city", "weight", "sent_on"),
}
_QUERIES = (
    ("the {n} rows with the largest {column}",
     "SELECT * FROM {table} ORDER BY {column} DESC LIMIT {n};"),
    ("how many rows there are for each {column}",
     "SELECT {column}, COUNT(*) FROM {table} GROUP BY {column};"),
    ("every {column} once", "SELECT DISTINCT {column} FROM {table};"),
    ("the rows whose id is above {n}", "SELECT * FROM {table} WHERE id > {n};"),
)  # fmt: skip
_GOODS = ("lamp", "kettle", "notebook", "chair", "umbrella", "backpack", "clock", "mug")
_FUNCTIONS = (
    ("returns the square of a number", "square", "x", "return x * x"),
    ("counts the vowels of a string", "count_vowels", "text",
     'return sum(c in "aeiou" for c in text.lower())'),
    ("reverses a list", "reversed_list", "items", "return items[::-1]"),
    ("returns the largest item", "largest", "items", "return max(items)"),
    ("says whether a number is even", "is_even", "n", "return n % 2 == 0"),
    ("joins words with commas", "joined", "words", 'return ", ".join(words)'),
    ("removes duplicates and keeps the order", "unique", "items",
     "return list(dict.fromkeys(items))"),
    ("returns the mean of a list", "mean", "values", "return sum(values) / len(values)"),
    ("counts how often each word occurs", "word_counts", "text",
     "return {w: text.split().count(w) for w in set(text.split())}"),
    ("says whether a word is a palindrome", "is_palindrome", "word", "return word == word[::-1]"),
    ("flattens a list of lists", "flattened", "rows", "return [x for row in rows for x in row]"),
    ("returns the n-th Fibonacci number", "fibonacci", "n",
     "a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a"),
)  # fmt: skip
_PATTERNS = (
    ("a four-digit year", r"\b\d{4}\b"),
    ("a hexadecimal colour", r"#[0-9a-fA-F]{6}"),
    ("a word that starts with a capital", r"\b[A-Z][a-z]+\b"),
    ("a date as in 2024-05-17", r"\d{4}-\d{2}-\d{2}"),
    ("a time as in 09:30", r"\b\d{2}:\d{2}\b"),
    ("one or more blanks at the end of a line", r"\s+$"),
    ("a number with two decimals", r"\b\d+\.\d{2}\b"),
    ("a line that starts with a hash", r"^#.*$"),
    ("a word of exactly five letters", r"\b[a-z]{5}\b"),
    ("two equal words in a row", r"\b(\w+) \1\b"),
)
_COMMANDS = (
    ("list the files of a folder with their sizes", "ls -lh"),
    ("count the lines of notes.txt", "wc -l notes.txt"),
    ("find every file that ends in .csv", "find . -name '*.csv'"),
    ("show the last twenty lines of app.log", "tail -n 20 app.log"),
    ("make a folder called archive", "mkdir archive"),
    ("show how much disk space is free", "df -h"),
    ("sort names.txt and drop repeats", "sort -u names.txt"),
    ("copy report.pdf into backup", "cp report.pdf backup/"),
    ("look for the word total in all text files", "grep -n total *.txt"),
    ("show the current folder", "pwd"),
)


def _person(rng: random.Random) -> dict[str, object]:
    return {
        "name": rng.choice(_PEOPLE),
        "age": rng.randint(19, 77),
        "city": rng.choice(_CITIES),
        "job": rng.choice(_JOBS),
    }


def _told(p: dict[str, object]) -> str:
    return f"{p['name']} is {p['age']} years old, lives in {p['city']} and works as a {p['job']}."


def json_extraction(rng: random.Random) -> Exchange:
    """A sentence's facts as a JSON object."""
    person = _person(rng)
    prompt = rng.choice(("Put this into JSON: {}", "Extract name, age, city and job as JSON. {}"))
    return prompt.format(_told(person)), json.dumps(person)


def json_reading(rng: random.Random) -> Exchange:
    """One value out of a JSON object."""
    person = _person(rng)
    key = rng.choice(list(person))
    return f"What is the {key} in this record? {json.dumps(person)}", f"The {key} is {person[key]}."


def csv_rows(rng: random.Random) -> Exchange:
    """Facts as comma-separated values."""
    people = [_person(rng) for _ in range(2)]
    sentence = " ".join(map(_told, people))
    rows = [",".join(str(v) for v in p.values()) for p in people]
    return f"Write as CSV with a header: {sentence}", "\n".join(["name,age,city,job", *rows])


def yaml_settings(rng: random.Random) -> Exchange:
    """Settings as YAML."""
    port, workers, level = (
        rng.randint(2000, 9000),
        rng.randint(1, 16),
        rng.choice(("debug", "info", "warning")),
    )
    question = f"Write a YAML file: port {port}, {workers} workers, log level {level}."
    return question, f"port: {port}\nworkers: {workers}\nlog_level: {level}"


def sql_queries(rng: random.Random) -> Exchange:
    """A question to a table, as SQL."""
    table = rng.choice(list(_TABLES))
    columns = _TABLES[table]
    column, n = rng.choice(columns[1:]), rng.randint(3, 40)
    prompt, query = (text.format(table=table, column=column, n=n) for text in rng.choice(_QUERIES))
    return f"The table {table} has {', '.join(columns)}. Write SQL for {prompt}.", query


def regular_expressions(rng: random.Random) -> Exchange:
    """A pattern for a kind of text."""
    what, pattern = rng.choice(_PATTERNS)
    prompt = rng.choice(("Which regular expression matches {}?", "Write a regex for {}."))
    return prompt.format(what), pattern


def python_functions(rng: random.Random) -> Exchange:
    """A function from what it does."""
    what, name, argument, body = rng.choice(_FUNCTIONS)
    prompt = rng.choice(
        ("Write a Python function that {}.", "In Python, define a function that {}.")
    )
    return prompt.format(what), f"def {name}({argument}):\n    {body}"


def code_reading(rng: random.Random) -> Exchange:
    """What a line of Python prints."""
    a, b, word = rng.randint(2, 30), rng.randint(2, 9), rng.choice(_GOODS)
    line, shown = rng.choice(
        (
            (f"print({a} % {b})", a % b),
            (f"print({a} // {b})", a // b),
            (f"print(len('{word}'))", len(word)),
            (f"print('{word}'.upper())", word.upper()),
            (f"print([x * {b} for x in range(4)])", [x * b for x in range(4)]),
            (f"print('{word}'[:{min(b, 4)}])", word[: min(b, 4)]),
        )
    )
    return f"What does this print?\n{line}", str(shown)


def shell_commands(rng: random.Random) -> Exchange:
    """A command from what it is for."""
    what, command = rng.choice(_COMMANDS)
    return rng.choice(("How do I {} in the shell?", "Shell command to {}?")).format(what), command


def markdown_tables(rng: random.Random) -> Exchange:
    """A price list as a table."""
    goods = {g: rng.randint(3, 90) for g in rng.sample(_GOODS, 3)}
    listed = ", ".join(f"{g} {p} euros" for g, p in goods.items())
    rows = [f"| {g} | {p} |" for g, p in goods.items()]
    return f"Make a table of: {listed}", "\n".join(["| item | price |", "| --- | --- |", *rows])


def table_reading(rng: random.Random) -> Exchange:
    """A question to a small table."""
    goods = {g: rng.randint(3, 90) for g in rng.sample(_GOODS, 4)}
    rows = "\n".join(f"{g} | {p}" for g, p in goods.items())
    best = max(goods, key=lambda g: goods[g])
    if rng.random() < 0.5:
        return f"Which item costs most?\n{rows}", f"The {best}, at {goods[best]}."
    return f"What do all items cost together?\n{rows}", f"Together they cost {sum(goods.values())}."


def html_lists(rng: random.Random) -> Exchange:
    """Words as an HTML list."""
    words = rng.sample(_GOODS, rng.randint(3, 5))
    items = "".join(f"<li>{w}</li>" for w in words)
    return f"Make an HTML list of {', '.join(words)}.", f"<ul>{items}</ul>"


def log_lines(rng: random.Random) -> Exchange:
    """The level and time of a log line."""
    level, hour = rng.choice(("INFO", "ERROR", "WARN")), rng.randint(0, 23)
    what = rng.choice(("disk almost full", "job finished", "user logged in", "cache cleared"))
    line = f"2024-03-{rng.randint(1, 28):02d}T{hour:02d}:{rng.randint(0, 59):02d} {level} {what}"
    return f"Give level and message of: {line}", f"level: {level}\nmessage: {what}"


FAMILIES = {
    f.__name__.replace("_", "-"): f
    for f in (
        json_extraction, json_reading, csv_rows, yaml_settings, sql_queries, regular_expressions,
        python_functions, code_reading, shell_commands, markdown_tables, table_reading, html_lists,
        log_lines,
    )
}  # fmt: skip
