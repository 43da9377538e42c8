"""The paper's study on any prepared data set: tables 3 to 5, figures 3 and 4, and shifted test splits."""
