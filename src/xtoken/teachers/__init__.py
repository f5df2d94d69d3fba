"""Teachers: whatever gives next-token distributions for a batch of token ids."""

from xtoken.teachers.averaged import AveragedTeachers
from xtoken.teachers.local import LocalTeacher

__all__ = ["AveragedTeachers", "LocalTeacher"]
