//! What a case is drawn from, and what the cases came across.

/// What the cases came across, so that a generator that does nothing is noticed.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) turns: u64,
    pub(super) stale: u64,
    pub(super) results: u64,
    pub(super) late: u64,
    pub(super) generations: u64,
    pub(super) ended: u64,
    pub(super) fired: u64,
}

impl Seen {
    pub(super) fn add(&mut self, other: &Seen) {
        self.turns += other.turns;
        self.stale += other.stale;
        self.results += other.results;
        self.late += other.late;
        self.generations += other.generations;
        self.ended += other.ended;
        self.fired += other.fired;
    }

    /// Every kind of thing happened often.
    pub(super) fn check(&self, cases: u64) {
        let Seen { turns, stale, results, late, generations, ended, fired } = self;
        for (what, count) in [
            ("turns", turns),
            ("stale turns", stale),
            ("results", results),
            ("late results", late),
            ("generations", generations),
            ("ends", ended),
            ("timers", fired),
        ] {
            assert!(*count > cases / 4, "only {count} {what} in {cases} cases");
        }
    }
}

/// Numbers that depend on nothing but the seed.
pub(super) struct Draw(pub(super) u64);

impl Draw {
    pub(super) fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits ^ (bits >> 31)) % limit as u64) as usize
    }

    pub(super) fn one_in(&mut self, odds: usize) -> bool {
        self.below(odds) == 0
    }
}
