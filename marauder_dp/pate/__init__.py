"""PATE: teachers, their votes, answers within a budget, and the student."""

from accountants.pate.record import Answer
from marauder_dp.pate.answers import Aggregator
from marauder_dp.pate.calibration import plan_voting
from marauder_dp.pate.owners import Owner, read_owners
from marauder_dp.pate.partitions import Partitions, partition, separately_held
from marauder_dp.pate.predictions import compile_votes, histograms
from marauder_dp.pate.promise import promise
from marauder_dp.pate.student import StudentTraining, train_student
from marauder_dp.pate.teachers import Ensemble, TeacherTraining, compile_ensemble
from marauder_dp.pate.voting import VotingPlan

__all__ = [
    "Aggregator",
    "Answer",
    "Ensemble",
    "Owner",
    "Partitions",
    "StudentTraining",
    "TeacherTraining",
    "VotingPlan",
    "compile_ensemble",
    "compile_votes",
    "histograms",
    "partition",
    "plan_voting",
    "promise",
    "read_owners",
    "separately_held",
    "train_student",
]
