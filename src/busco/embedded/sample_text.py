"""The fixed data of the fictional marketplace: its files, map, goods, kinds of orders, calendar and phrases.

The cities, their rough coordinates and their ranges of zip prefixes are public geography. All sentences were written
for this sample.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterator
from datetime import date, timedelta
from typing import NamedTuple

TRANSLATION, GEOLOCATION, SELLERS, PRODUCTS, CUSTOMERS, ORDERS, ITEMS, PAYMENTS, REVIEWS = (
    "product_category_name_translation.csv.gz",
    "olist_geolocation_dataset.csv.gz",
    "olist_sellers_dataset.csv.gz",
    "olist_products_dataset.csv.gz",
    "olist_customers_dataset.csv.gz",
    "olist_orders_dataset.csv.gz",
    "olist_order_items_dataset.csv.gz",
    "olist_order_payments_dataset.csv.gz",
    "olist_order_reviews_dataset.csv.gz",
)
HEADERS = {
    TRANSLATION: "product_category_name,product_category_name_english",
    GEOLOCATION: "geolocation_zip_code_prefix,geolocation_lat,geolocation_lng,geolocation_city,geolocation_state",
    SELLERS: "seller_id,seller_zip_code_prefix,seller_city,seller_state",
    PRODUCTS: "product_id,product_category_name,product_name_lenght,product_description_lenght,product_photos_qty,"
    "product_weight_g,product_length_cm,product_height_cm,product_width_cm",
    CUSTOMERS: "customer_id,customer_unique_id,customer_zip_code_prefix,customer_city,customer_state",
    ORDERS: "order_id,customer_id,order_status,order_purchase_timestamp,order_approved_at,"
    "order_delivered_carrier_date,order_delivered_customer_date,order_estimated_delivery_date",
    ITEMS: "order_id,order_item_id,product_id,seller_id,shipping_limit_date,price,freight_value",
    PAYMENTS: "order_id,payment_sequential,payment_type,payment_installments,payment_value",
    REVIEWS: "review_id,order_id,review_score,review_comment_title,review_comment_message,review_creation_date,"
    "review_answer_timestamp",
}

HOUR, DAY = 3600, 86400
FIRST, LAST = date(2016, 9, 1), date(2018, 10, 31)
DAYS = [(FIRST + timedelta(days=day)).isoformat() for day in range(1100)]


class City(NamedTuple):
    """A city: its position in degrees, zip prefixes, weight (relative number of prefixes), and shipping time in days.

    Its zip prefixes range from `first` up to, but not including, `end`.
    """

    name: str
    state: str
    latitude: float
    longitude: float
    first: int
    end: int
    weight: int
    days: int

    @property
    def plain(self) -> str:
        """The name in lower case without accents, which is the spelling in most files."""
        return unicodedata.normalize("NFKD", self.name).encode("ascii", "ignore").decode().lower()


class Category(NamedTuple):
    """A product category. `english` is empty if the translation is missing; price is in BRL, weight in grams."""

    name: str
    english: str
    price: int
    weight_g: int


# The south-east comes first, because sellers are drawn more often from the beginning of the list.
CITIES = (
    City("São Paulo", "SP", -23.55, -46.63, 1001, 6000, 160, 1),
    City("Campinas", "SP", -22.91, -47.06, 13010, 13149, 22, 1),
    City("Guarulhos", "SP", -23.46, -46.53, 7010, 7400, 20, 1),
    City("Santo André", "SP", -23.66, -46.53, 9010, 9300, 16, 1),
    City("São Bernardo do Campo", "SP", -23.69, -46.56, 9600, 9900, 17, 1),
    City("Osasco", "SP", -23.53, -46.79, 6010, 6300, 14, 1),
    City("Santos", "SP", -23.96, -46.33, 11010, 11097, 12, 1),
    City("Ribeirão Preto", "SP", -21.18, -47.81, 14010, 14110, 12, 2),
    City("Sorocaba", "SP", -23.50, -47.46, 18010, 18110, 11, 1),
    City("São José dos Campos", "SP", -23.18, -45.88, 12210, 12250, 12, 1),
    City("Jundiaí", "SP", -23.19, -46.88, 13201, 13220, 9, 1),
    City("Rio de Janeiro", "RJ", -22.91, -43.20, 20010, 23800, 80, 4),
    City("Niterói", "RJ", -22.88, -43.10, 24020, 24400, 12, 4),
    City("Nova Iguaçu", "RJ", -22.76, -43.45, 26010, 26300, 8, 4),
    City("Petrópolis", "RJ", -22.51, -43.18, 25610, 25780, 5, 4),
    City("Belo Horizonte", "MG", -19.92, -43.94, 30110, 32000, 48, 3),
    City("Contagem", "MG", -19.93, -44.05, 32010, 32400, 9, 3),
    City("Uberlândia", "MG", -18.92, -48.28, 38400, 38416, 8, 3),
    City("Juiz de Fora", "MG", -21.76, -43.35, 36010, 36110, 8, 3),
    City("Curitiba", "PR", -25.43, -49.27, 80010, 83000, 32, 3),
    City("Londrina", "PR", -23.31, -51.16, 86010, 86100, 8, 3),
    City("Maringá", "PR", -23.42, -51.94, 87010, 87110, 7, 3),
    City("Florianópolis", "SC", -27.60, -48.55, 88010, 88100, 12, 4),
    City("Joinville", "SC", -26.30, -48.85, 89201, 89240, 8, 4),
    City("Blumenau", "SC", -26.92, -49.07, 89010, 89070, 7, 4),
    City("Porto Alegre", "RS", -30.03, -51.23, 90010, 92000, 28, 5),
    City("Caxias do Sul", "RS", -29.17, -51.18, 95010, 95125, 7, 5),
    City("Pelotas", "RS", -31.77, -52.34, 96010, 96100, 6, 5),
    City("Vitória", "ES", -20.32, -40.34, 29010, 29100, 9, 5),
    City("Vila Velha", "ES", -20.33, -40.29, 29100, 29130, 8, 5),
    City("Brasília", "DF", -15.79, -47.88, 70040, 72800, 24, 5),
    City("Goiânia", "GO", -16.69, -49.25, 74010, 74900, 15, 5),
    City("Anápolis", "GO", -16.33, -48.95, 75001, 75150, 4, 5),
    City("Cuiabá", "MT", -15.60, -56.10, 78005, 78110, 6, 7),
    City("Campo Grande", "MS", -20.47, -54.62, 79002, 79130, 7, 6),
    City("Salvador", "BA", -12.97, -38.50, 40010, 42500, 24, 8),
    City("Feira de Santana", "BA", -12.27, -38.97, 44001, 44150, 5, 8),
    City("Aracaju", "SE", -10.91, -37.07, 49010, 49100, 4, 9),
    City("Recife", "PE", -8.05, -34.90, 50010, 53000, 14, 8),
    City("Olinda", "PE", -8.01, -34.86, 53010, 53440, 3, 8),
    City("Maceió", "AL", -9.67, -35.74, 57010, 57100, 5, 9),
    City("João Pessoa", "PB", -7.12, -34.86, 58010, 58100, 5, 8),
    City("Natal", "RN", -5.79, -35.21, 59010, 59140, 5, 8),
    City("Fortaleza", "CE", -3.73, -38.53, 60010, 61600, 13, 9),
    City("Teresina", "PI", -5.09, -42.80, 64000, 64100, 4, 9),
    City("São Luís", "MA", -2.53, -44.30, 65010, 65110, 6, 9),
    City("Belém", "PA", -1.46, -48.50, 66010, 67000, 8, 10),
    City("Palmas", "TO", -10.18, -48.33, 77001, 77250, 2, 8),
    City("Porto Velho", "RO", -8.76, -63.90, 76801, 76835, 2, 10),
    City("Manaus", "AM", -3.12, -60.02, 69005, 69100, 2, 12),
    City("Rio Branco", "AC", -9.97, -67.81, 69900, 69924, 1, 12),
    City("Macapá", "AP", 0.03, -51.07, 68900, 68915, 1, 12),
    City("Boa Vista", "RR", 2.82, -60.67, 69301, 69340, 1, 13),
)

# The best-selling categories come first.
CATEGORIES = (
    Category("casa_e_decoracao", "home_and_decor", 90, 1800),
    Category("saude_e_beleza", "health_and_beauty", 75, 500),
    Category("roupa_de_cama_e_banho", "bed_and_bath", 85, 1500),
    Category("esporte_e_aventura", "sports_and_outdoors", 95, 1200),
    Category("acessorios_de_computador", "computer_accessories", 80, 600),
    Category("cozinha", "kitchen", 70, 1400),
    Category("relogios", "watches", 160, 350),
    Category("celulares", "mobile_phones", 60, 250),
    Category("jardim_e_varanda", "garden_and_balcony", 95, 2400),
    Category("pecas_de_carro", "car_parts", 120, 2100),
    Category("brinquedos_infantis", "toys", 85, 900),
    Category("presentes_criativos", "creative_gifts", 110, 1000),
    Category("bebe", "baby", 100, 2200),
    Category("perfumes", "fragrances", 95, 400),
    Category("escritorio_e_papel", "office_and_paper", 70, 1100),
    Category("bolsas_e_mochilas", "bags_and_backpacks", 65, 700),
    Category("racao_e_animais", "pets", 80, 2500),
    Category("som_e_imagem", "sound_and_vision", 130, 1300),
    Category("malas_de_viagem", "luggage", 115, 3600),
    Category("instrumentos", "instruments", 190, 2800),
    Category("jogos_e_consoles", "games_and_consoles", 105, 450),
    Category("moveis_de_escritorio", "office_furniture", 150, 9800),
    Category("moveis_de_quarto", "bedroom_furniture", 170, 11000),
    Category("pequenos_eletros", "small_appliances", 140, 3300),
    Category("grandes_eletros", "large_appliances", 420, 14500),
    Category("livros_nacionais", "books_in_portuguese", 45, 550),
    Category("livros_estrangeiros", "foreign_books", 60, 600),
    Category("ferramentas_eletricas", "power_tools", 135, 2600),
    Category("material_de_construcao", "building_materials", 75, 3800),
    Category("iluminacao", "lighting", 65, 900),
    Category("mercearia", "groceries", 50, 1000),
    Category("vinhos_e_cervejas", "wine_and_beer", 65, 1700),
    Category("calcados", "shoes", 85, 800),
    Category("moda_masculina", "menswear", 70, 350),
    Category("moda_feminina", "womenswear", 65, 300),
    Category("moda_praia", "swimwear", 60, 200),
    Category("festas_e_natal", "parties_and_christmas", 55, 700),
    Category("artesanato", "crafts", 50, 500),
    Category("discos_de_vinil", "vinyl_records", 90, 400),
    Category("seguranca_residencial", "", 110, 900),
    Category("computadores_montados", "", 1100, 6900),
)

# The kinds of special orders, each with its share of all orders and its minimum number (fewer in small samples). An
# order has at most one kind; orders without a kind are ordinary delivered orders. The first seven kinds are also
# statuses.
KINDS = {
    "shipped": (0.011, 2),
    "canceled": (0.006, 3),
    "unavailable": (0.006, 2),
    "invoiced": (0.003, 1),
    "processing": (0.003, 1),
    "created": (0.00005, 1),
    "approved": (0.00003, 1),
    "payment not defined": (0.00003, 1),
    "no payment": (0.00001, 1),
    "payments tie": (0.002, 3),
    "order twice": (0.001, 3),
    "items twice": (0.001, 3),
    "payments twice": (0.001, 3),
    "no delivery time": (0.0002, 2),
    "no approval time": (0.0002, 1),
    "no review": (0.009, 3),
    "two reviews": (0.005, 3),
    "review of another": (0.005, 3),
    "review unanswered": (0.001, 2),
}

# For each status: how many of the steps (approved, shipped, delivered) an order with that status has completed.
STATUSES = {"created": 0, "approved": 1, "processing": 1, "invoiced": 1, "unavailable": 1, "shipped": 2, "canceled": 0}
WITHOUT_ITEMS = {"created": 1.0, "unavailable": 1.0, "canceled": 0.3}
# Cumulative shares of orders with up to 1, 2 and 3 items; the rest have 4.
ITEM_COUNTS = (0.88, 0.955, 0.985)
LATE_MONTHS = {"02": 1.4, "03": 1.4, "11": 1.8, "12": 1.5}

# Relative frequency of purchases by hour, by day of the week (from Monday) and by month (from January).
HOURS = (24, 12, 5, 3, 2, 2, 5, 12, 30, 48, 62, 66, 60, 65, 66, 64, 67, 61, 58, 60, 62, 62, 58, 41)
WEEKDAYS = (1.15, 1.14, 1.11, 1.05, 1.0, 0.76, 0.84)
MONTHS = (1.0, 0.95, 1.02, 0.97, 1.08, 0.95, 1.0, 1.03, 0.97, 1.0, 1.2, 1.1)

# Cumulative shares of review scores up to 1, 2, 3 and 4, by how the delivery went; the rest are 5.
SCORES = {
    "in time": (0.06, 0.09, 0.17, 0.38),
    "late": (0.46, 0.56, 0.69, 0.81),
    "never": (0.68, 0.76, 0.83, 0.89),
}

# Titles and sentences of reviews by the customer's mood: happy (score 4 or 5), neutral (3), unhappy (1 or 2).
TITLES = (
    ("Recomendo a loja", "Amei!", "Nota dez", "Tudo certo, obrigada", "Voltarei a comprar", "Show 👏"),
    ("Razoável", "Mais ou menos", "Esperava mais", "Bom, mas demorou"),
    ("Decepção", "Nunca mais", "Cadê meu pedido?", "Veio errado", 'Não é "original"', "Péssima experiência 😡"),
)
SENTENCES = (
    (
        "Chegou dois dias antes do combinado.",
        "Adorei a cor e o acabamento, ficou lindo na sala.",
        "Embalagem caprichada e vendedor atencioso.",
        "Minha mãe amou o presente ❤️",
        "Exatamente igual à foto.",
        'Parece simples, mas é bem resistente; o "pequeno" é grande de verdade.',
        "Compro de novo com certeza 👍",
        "Tudo ok",
        "Muito bom pelo preço, R$ 20,00 a menos que na loja do bairro.",
        "Funciona direitinho",
        "Entrega rápida até aqui no interior, parabéns!",
        "Gostei bastante, recomendo.",
    ),
    (
        "O produto é bom, a entrega é que deixou a desejar.",
        "Cor um pouco diferente da foto.",
        "Serve, mas o material é fino.",
        "Faltou o manual, tive de procurar na internet.",
        "Veio com um risco pequeno na lateral",
        'A caixa dizia "frágil", e mesmo assim chegou amassada.',
        "Ainda estou testando 🤔",
        "Metade do pedido veio hoje, a outra metade não sei.",
    ),
    (
        "Até agora não recebi nada, e ninguém responde.",
        "Veio quebrado e quero meu dinheiro de volta!",
        "Pedi azul, mandaram verde.",
        "O rastreio está parado há três semanas 😠",
        "Comprei dois, chegou um só.",
        'Dizem que foi "entregue ao porteiro"; moro em casa, não tenho porteiro.',
        "Não liga",
        "Tamanho errado, e a troca sai mais cara que o produto.",
        "Atrasou, o aniversário já passou.",
        "Péssimo atendimento",
    ),
)


def day_weights() -> Iterator[float]:
    """Yields the relative number of purchases of each day: growth, season, day of the week, and November's sale."""
    days = (LAST - FIRST).days + 1
    for number in range(days):
        day = FIRST + timedelta(days=number)
        sale = (4.0, 2.0, 1.6, 1.5)[day.day - 24] if day.month == 11 and 24 <= day.day <= 27 else 1.0
        yield (0.04 + number / days) * MONTHS[day.month - 1] * WEEKDAYS[day.weekday()] * sale


def draw_kinds(orders: int, rng: random.Random) -> dict[int, str]:
    """Draws which orders are special; returns the kind of each by the order's number, counting from 0."""
    kinds: list[str] = []
    for kind, (share, least) in KINDS.items():
        kinds += [kind] * max(int(share * orders), min(least, orders // 50))
    return dict(zip(rng.sample(range(orders), len(kinds)), kinds, strict=True))


def moment(seconds: int | None) -> str:
    """Formats a time given in seconds since the first day; returns an empty string for None."""
    if seconds is None:
        return ""
    minutes, second = divmod(seconds % DAY, 60)
    return f"{DAYS[seconds // DAY]} {minutes // 60:02}:{minutes % 60:02}:{second:02}"


def comment(score: int, rng: random.Random) -> tuple[str, str]:
    """Draws a review's title and message as CSV values. Most titles and about half of the messages are empty."""
    tone = 0 if score > 3 else 1 if score == 3 else 2
    title, message = "", ""
    if rng.random() < 0.12:
        title = _quoted(rng.choice(TITLES[tone]))
    if rng.random() < (0.4, 0.6, 0.75)[tone]:
        between = " " if rng.random() < 0.93 else "\n" if rng.random() < 0.5 else "\r\n"
        sentences = (rng.choice(SENTENCES[tone]) for _ in range(1 + int(3 * rng.random())))
        message = _quoted(between.join(sentences))
    return title, message


def _quoted(text: str) -> str:
    """Returns the text as a CSV value, in quotes if necessary."""
    if any(mark in text for mark in ',"\n'):
        return '"' + text.replace('"', '""') + '"'
    return text
