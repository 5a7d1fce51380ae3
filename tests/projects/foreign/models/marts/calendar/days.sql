select cast(unnest(generate_series(date '2024-01-01', date '2024-02-29', interval 1 day)) as date) as date_day
