-- Postgres runs this once, when its volume is empty: Prefect's database is made from POSTGRES_DB, MLflow's here.
CREATE DATABASE mlflow;
