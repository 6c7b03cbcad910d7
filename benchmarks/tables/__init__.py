"""The benchmark of tables: what is measured, and how, in one place.

**Density.** Complete rows of the numeric columns with more than `max(15, N / 20)` distinct values; split 60/20/20 into
training, validation and test rows, five times. Mean NLL of the test rows, nats a row, in units in which the training
rows of the 60 % have deviation 1 in each column (a constant that is the same for every model).

- Every rival has a grid of settings, each fitted to the 60 %; the one with the best likelihood of the validation rows
  counts. It is measured as it is, and fitted again with the same setting to training and validation rows together; the
  summary takes, for each rival and table, whichever of the two is better on the test rows over all splits. That favours
  the rivals.
- girih has no setting: it gets training and validation rows together and chooses inside. `girih_60` got the 60 % only.
- A density is unbounded where values repeat: a model that puts a spike on a value of its own wins by any margin. So
  all rows, of training and test, get uniform noise of one rounding width, by the same seed for every model
  ("dequantised"): -log of the density of the noisy value is then a bound of -log of the probability of the rounded one.
  The width is the smallest difference between two values of the column; where one value fills more than a tenth of the
  column, at least a hundredth of its deviation. `--raw` compares without the noise.

**Imputation.** Cells of the same tables are hidden, at random (MCAR) or with a probability that grows with a column
that is always seen (MAR): 10, 20, 40 %, five times. Each model is fitted to the incomplete table and fills it in. RMSE
of the hidden cells, each column divided by its deviation. Rivals choose their setting by hiding 10 % more. Coverage is
the share of hidden cells within the central 90 % of girih's conditional distribution.

**Anomalies.** Tables with a rare class: it is 5 % of the training rows, without labels, and the fresh rows are the rest
of both. Area under the ROC curve of -log p. Nobody sees a label.

**Time** is processor time: of the whole search and of the fit with the chosen setting.
"""
