"""Labels to and from the files of other programs.

    label row   what training reads (docs/labeling.md): {"prompt", "responses", "ranks", …}
    format      reads a file or folder as label rows, and writes label rows

`label.formats.registry` has them by name: jsonl (the rows themselves), label-studio, argilla, hub
(a folder of Parquet for Hugging Face `datasets`), anthropic (pairs as text), oasst (trees with
ranks), arena (battles of two models), csv. A row without "ranks" is an item to label."""
