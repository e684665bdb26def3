from .association_classifier import fit_association as fit_association
from .bottleneck import write_bottleneck as write_bottleneck
from .calibration import (
    Calibration as Calibration,
    Reliability as Reliability,
    apply_platt as apply_platt,
    apply_temperature as apply_temperature,
    brier_score as brier_score,
    fit_platt as fit_platt,
    fit_temperature as fit_temperature,
    log_loss as log_loss,
    measure_calibration as measure_calibration,
    reliability_diagram as reliability_diagram,
)
from .classifiers import (
    LinearClassifier as LinearClassifier,
    OneVsRestClassifier as OneVsRestClassifier,
    TreeClassifier as TreeClassifier,
    evaluate_on_holdout as evaluate_on_holdout,
    fit_logistic as fit_logistic,
    fit_tree as fit_tree,
)
from .comparison import Comparison as Comparison, compare_databases as compare_databases
from .concept_annotations import read_concept_annotations as read_concept_annotations
from .concept_models import (
    ConceptModel as ConceptModel,
    Predictions as Predictions,
    apply_model as apply_model,
    load_model as load_model,
    make_concept_model as make_concept_model,
    save_model as save_model,
)
from .controls import (
    Control as Control,
    Controls as Controls,
    Difference as Difference,
    LevelAccuracy as LevelAccuracy,
    accuracy_by_level as accuracy_by_level,
    run_controls as run_controls,
)
from .few_shot import FewShot as FewShot, few_shot_curve as few_shot_curve
from .holdout_log import HoldoutAccess as HoldoutAccess, HoldoutLog as HoldoutLog
from .image_source import image_reader as image_reader
from .intervals import Estimate as Estimate
from .intervention import (
    ConceptAuroc as ConceptAuroc,
    InterventionCurve as InterventionCurve,
    WhatIf as WhatIf,
    concept_auroc as concept_auroc,
    concept_groups as concept_groups,
    intervention_curve as intervention_curve,
    what_if as what_if,
)
from .label_error_detection import (
    LabelError as LabelError,
    find_label_errors as find_label_errors,
    judge_labels as judge_labels,
    label_errors as label_errors,
    save_label_error_images as save_label_error_images,
    write_label_errors as write_label_errors,
)
from .leakage import Leakage as Leakage, measure_leakage as measure_leakage
from .localisation import (
    Localisation as Localisation,
    exchange_maps as exchange_maps,
    measure_localisation as measure_localisation,
    patch_mask as patch_mask,
)
from .metrics import (
    Evaluation as Evaluation,
    choose_thresholds as choose_thresholds,
    evaluate as evaluate,
)
from .paper_tables import write_paper_tables as write_paper_tables
from .projection import (
    Projection as Projection,
    project_features as project_features,
    read_projection as read_projection,
    write_projection as write_projection,
)
from .results import AnalysisResult as AnalysisResult
from .retrieval import Retrieval as Retrieval, measure_retrieval as measure_retrieval
from .row_history import explain_rows as explain_rows, row_histories as row_histories
from .samples import (
    Samples as Samples,
    concept_samples as concept_samples,
    database_concepts as database_concepts,
    feature_samples as feature_samples,
)
from .scores import (
    concept_scores as concept_scores,
    image_cosines as image_cosines,
    patch_cosines as patch_cosines,
    patch_scores as patch_scores,
)
from .sparse_classifiers import (
    SparseAccuracy as SparseAccuracy,
    SparsePoint as SparsePoint,
    accuracy_against_nec as accuracy_against_nec,
    sparse_path as sparse_path,
)
from .vector_search import (
    Hit as Hit,
    ImagePair as ImagePair,
    NearDuplicates as NearDuplicates,
    RowFilter as RowFilter,
    near_duplicates as near_duplicates,
    nearest_images as nearest_images,
    nearest_images_of_each as nearest_images_of_each,
    nearest_patches as nearest_patches,
    save_hit_images as save_hit_images,
    search as search,
    write_hits as write_hits,
    write_pairs as write_pairs,
)
from .zero_shot_scores import (
    Probabilities as Probabilities,
    ZeroShot as ZeroShot,
    annotation_scores as annotation_scores,
    has_local_scores as has_local_scores,
    measure_zero_shot as measure_zero_shot,
    write_zero_shot as write_zero_shot,
    zero_shot as zero_shot,
    zero_shot_from_arrays as zero_shot_from_arrays,
)
