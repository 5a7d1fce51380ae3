"""A second computation of the sample warehouse, without SQL, with which the platform's tables are compared."""

# The grain of each table: the columns whose values together identify a row.
KEYS: dict[str, list[str]] = {
    "silver.orders": ["order_id"],
    "silver.order_items": ["order_id", "item_number"],
    "silver.order_payments": ["order_id", "payment_number"],
    "silver.order_reviews": ["review_id", "order_id"],
    "silver.customers": ["customer_id"],
    "silver.products": ["product_id"],
    "silver.sellers": ["seller_id"],
    "silver.locations": ["zip_prefix"],
    "gold.dim_dates": ["date_day"],
    "gold.dim_customers": ["customer_unique_id"],
    "gold.dim_products": ["product_id"],
    "gold.dim_sellers": ["seller_id"],
    "gold.fct_orders": ["order_id"],
    "gold.fct_order_items": ["order_id", "item_number"],
    "gold.mart_daily_sales": ["purchased_on"],
    "gold.mart_category_sales": ["purchase_month", "category"],
    "gold.mart_seller_scorecard": ["seller_id"],
    "gold.mart_delivery_performance": ["customer_state", "purchase_month"],
    "gold.mart_customer_cohorts": ["cohort_month", "months_since_first"],
    "gold.mart_payment_mix": ["purchase_month", "payment_type"],
}

# The columns of each table in order, grouped by type: each group is a type followed by its columns.
COLUMNS: dict[str, str] = {
    "silver.orders": "text order_id customer_id status; timestamp purchased_at approved_at shipped_at delivered_at;"
    " date estimated_delivery_on purchased_on purchase_month; bigint _source_row",
    "silver.order_items": "text order_id; integer item_number; text product_id seller_id; timestamp shipping_limit_at;"
    " money price freight; date purchase_month; bigint _source_row",
    "silver.order_payments": "text order_id; integer payment_number; text payment_type; integer installments;"
    " money amount; date purchase_month; bigint _source_row",
    "silver.order_reviews": "text review_id order_id; integer score; text title message; date created_on;"
    " timestamp answered_at; bigint _source_row",
    "silver.customers": "text customer_id customer_unique_id zip_prefix city state; bigint _source_row",
    # Nothing renames or drops the two lengths, so they "keep their bronze name and type".
    "silver.products": "text product_id category; integer product_name_lenght product_description_lenght photos"
    " weight_g length_cm height_cm width_cm; bigint _source_row",
    "silver.sellers": "text seller_id zip_prefix city state; bigint _source_row",
    "silver.locations": "text zip_prefix; double latitude longitude; bigint points",
    "gold.dim_dates": "date date_day; integer year quarter month; date month_start; integer iso_week day_of_week;"
    " boolean is_weekend",
    "gold.dim_customers": "text customer_unique_id; timestamp first_order_at last_order_at; bigint orders;"
    " sum lifetime_amount; boolean is_repeat; text state city",
    "gold.dim_products": "text product_id category; integer weight_g; bigint volume_cm3 items_sold;"
    " date first_sold_on last_sold_on",
    "gold.dim_sellers": "text seller_id city state; double latitude longitude; date first_sold_on last_sold_on",
    "gold.fct_orders": "text order_id customer_id customer_unique_id customer_state status; timestamp purchased_at;"
    " date purchased_on purchase_month; timestamp approved_at delivered_at; date estimated_delivery_on;"
    " bigint items sellers; sum items_amount freight_amount order_amount paid_amount; bigint payments;"
    " text main_payment_type; integer review_score; boolean is_sold is_delivered is_late; double delivery_days",
    "gold.fct_order_items": "text order_id; integer item_number; text product_id category seller_id seller_state"
    " customer_state; date purchased_on purchase_month; money price freight; boolean is_sold",
    "gold.mart_daily_sales": "date purchased_on; bigint orders customers items;"
    " sum items_amount freight_amount order_amount; money average_order_amount",
    "gold.mart_category_sales": "date purchase_month; text category; bigint orders items;"
    " sum items_amount freight_amount; bigint sellers",
    "gold.mart_seller_scorecard": "text seller_id; bigint orders items; sum items_amount;"
    " bigint delivered_orders late_orders; double late_rate average_review_score; bigint amount_rank",
    "gold.mart_delivery_performance": "text customer_state; date purchase_month; bigint delivered_orders late_orders;"
    " double on_time_rate average_delivery_days p90_delivery_days",
    "gold.mart_customer_cohorts": "date cohort_month; bigint months_since_first active_customers orders;"
    " sum order_amount; bigint cohort_customers; double retention_rate",
    "gold.mart_payment_mix": "date purchase_month; text payment_type; bigint payments orders; sum amount; double share"
    " average_installments",
}
