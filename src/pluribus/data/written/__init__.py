"""Tables as people write them: one file for each question about how cells, columns and files are written.

| file        | question                                                                |
|-------------|-------------------------------------------------------------------------|
| `reading`   | what the user says of it                                                |
| `encoding`  | which letters do the bytes mean, and what separates the fields?         |
| `header`    | what are the columns called?                                            |
| `missing`   | which words and numbers mean that there is no value?                    |
| `numbers`   | are these words numbers?                                                |
| `dates`     | are these words dates, and does the day or the month come first?        |
| `words`     | are these words the same, but for spaces and capitals? yes and no?      |
| `codes`     | is this number a code (a zip code, an id)?                              |
| `total_row` | is the last row a total?                                                |
| `writing`   | how one column is written: what is kept with a model                    |
| `deciding`  | all columns of a file, in order                                         |

A column is converted only if all cells that hold a value agree. What was decided is said in one line that names the option which
decides otherwise, and is kept with the model: a further file, and a request to a server, are read in the same way.
"""
