-- Records have members now that replicas of before can't read: they are to stop, and say so.
UPDATE meta SET format = 2;
