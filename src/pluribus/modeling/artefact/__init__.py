"""Fitted artefacts: what they answer, and how they travel.

| file          | what it holds                                                            |
|---------------|--------------------------------------------------------------------------|
| fitted        | `Fitted`, the contract of all artefacts; `Costs`                         |
| record        | `FitRecord`, what a fit leaves to know                                   |
| preprocessing | `Preprocessing`, what an artefact must know of the columns that it reads |
| folder        | the model folder: its manifest, its hashes, how it is written            |
| loading       | `load`, from a folder to the artefact in it                              |
| committee     | several artefacts behind one face, a member a task                       |
| importance    | which inputs a task's predictions rest on                                   |
| average       | several artefacts behind one face, a weighted mean of them a task        |
| merged        | a merge or a merge container with its transformers model                 |

Networks, trees, boosters and text models are artefacts too; their classes stand in their own packages.
"""
