"""All families by name, and sizes small enough for a model of 135 million parameters: FAMILIES["gcd"]."""

from trlm_core.data.generated.arithmetic import ARITHMETIC
from trlm_core.data.generated.counting import COUNTING
from trlm_core.data.generated.divisors import DIVISORS
from trlm_core.data.generated.equations import EQUATIONS
from trlm_core.data.generated.family import Family
from trlm_core.data.generated.filtering import FILTERING
from trlm_core.data.generated.logic import LOGIC
from trlm_core.data.generated.numerals import NUMERALS
from trlm_core.data.generated.ordering import ORDERING
from trlm_core.data.generated.spelling import SPELLING

_ALL = (*ARITHMETIC, *COUNTING, *ORDERING, *FILTERING, *SPELLING, *DIVISORS, *EQUATIONS, *NUMERALS, *LOGIC)
FAMILIES: dict[str, Family] = {family.name: family for family in _ALL}

# Configurations of reasoning-gym. Each leaves room for at least 300 different questions.
SMALL_SIZES: dict[str, dict[str, object]] = {
    "chain_sum": {"min_terms": 2, "max_terms": 3, "max_digits": 1},
    "decimal_chain_sum": {"max_terms": 2, "max_digits": 1, "max_decimal_places": 1},
    "basic_arithmetic": {"max_terms": 2, "max_digits": 1},
    # One digit by one digit gives 100 questions; signs give 361.
    "products": {"max_digits": 1, "allow_negation": True},
    "leg_counting": {"min_animals": 1, "max_animals": 2, "max_instances": 4},
    "letter_counting": {"min_words": 2, "max_words": 3},
    "number_sorting": {"max_numbers": 3, "max_decimals": 0, "min_value": 0.0, "max_value": 99.0},
    "word_sorting": {"max_words": 3, "max_word_length": 5, "transformation": "lowercase"},
    "number_filtering": {"max_numbers": 4, "max_decimals": 0, "min_value": 0.0, "max_value": 9.0},
    # 3 to 4 letters leave 267 ordinary words.
    "spell_backward": {"max_word_len": 5},
    "string_insertion": {"min_string_length": 8, "max_string_length": 12},
    "gcd": {"min_value": 2, "max_value": 20},
    "lcm": {"min_value": 2, "max_value": 20},
    "prime_factorization": {"max_value": 320},
    "fraction_simplification": {"max_value": 16, "min_factor": 2, "max_factor": 6, "styles": ("plain",)},
    # Never *, which would give coefficients like 36.
    "simple_equations": {"max_terms": 2, "max_value": 9, "operators_weights": (0.5, 0.5, 0.0)},
    "base_conversion": {"max_base": 10, "min_value": 10, "max_value": 40},
    "count_bits": {"max_n": 320},
    "knights_knaves": {"n_people": 2},
    "course_schedule": {"min_num_courses": 3, "max_num_courses": 4, "max_cycle_length": 3},
}
