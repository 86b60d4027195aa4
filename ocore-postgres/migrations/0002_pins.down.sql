DROP TABLE ocore.pins;
