"""Importers: published layouts of multimedia recommendation data to one canonical data set.

    tables      CSV, TSV or Parquet, with or without splits, any id type
    invrl       InvRL and MMGCN folders: object arrays of interactions, feat_*.npy or .pt
    mmrec       MMRec folders: one .inter table, *_feat.npy
    matrices    sparse matrices per split (.npz, .pkl), *_feat.npy

Each reads into a `common.Source`; `common.write` makes the data set. Nothing that is read can run code.
"""
