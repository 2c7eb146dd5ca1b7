//! The horizon behind which VACUUM removes rows: a statement that waits for hours must not hold it back.
//!
//! A SELECT has its snapshot until it ends, and whatever dies meanwhile, in any table, is kept for it. Where the statement is
//! a call of one of our functions and nothing else, nothing is ever looked up with that snapshot. So the statement has none
//! while the function waits, as a procedure has none between a COMMIT and its next statement, and gets a new one then.
//! docs/decisions/2026-11-30-no-snapshot-while-waiting.md says what else was considered.

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, Ordering};

use pgrx::{PgList, is_a, pg_sys};

use super::{cleanup, log};

/// Whether the statement has no snapshot now. Main thread only.
static IS_LET_GO: AtomicBool = AtomicBool::new(false);

/// While it lives the calling statement holds no row back, if it is one that need not. Nothing is looked up meanwhile: there may
/// be no snapshot to look with.
#[must_use = "the horizon is held again when this is dropped"]
pub(crate) struct LetGo(Option<Statement>);

/// Lets go of the horizon where that may be done.
pub(crate) fn let_go() -> LetGo {
    let statement = Statement::of_this_call();
    if let Some(statement) = &statement {
        statement.give_snapshot_back();
        IS_LET_GO.store(true, Ordering::Relaxed);
    }
    LetGo(statement)
}

/// Whether there is no snapshot to look things up with.
pub(super) fn is_let_go() -> bool {
    IS_LET_GO.load(Ordering::Relaxed)
}

impl Drop for LetGo {
    /// Also while an ERROR unwinds: what catches it may go on, and the executor expects a snapshot to be there.
    fn drop(&mut self) {
        let Some(statement) = &self.0 else { return };
        let mut has_one = false;
        cleanup::quietly("take a snapshot", || {
            statement.take_snapshot();
            has_one = true;
        });
        if !has_one {
            // memory is all that it can want, and the executor must not go on without one
            log::end_for_want_of_memory();
        }
        IS_LET_GO.store(false, Ordering::Relaxed);
    }
}

/// A statement that is nothing but the call of the function of ours that runs.
struct Statement {
    query: NonNull<pg_sys::QueryDesc>,
    /// Who its snapshot is registered with.
    owner: pg_sys::ResourceOwner,
}

impl Statement {
    /// The statement of the session, if its snapshot is in nobody else's hands and of no use to the statement itself.
    ///
    /// Not in a transaction block, and not with one snapshot for a whole transaction: that one stays. Not once the transaction has
    /// a number, which holds the horizon anyway.
    fn of_this_call() -> Option<Self> {
        // SAFETY: reads variables of this process and what they point to, which lasts as long as the portal runs: the
        // statement that called us has not returned. Portal, QueryDesc, EState and snapshot have these fields in every version
        // from 13 to 19, and pgrx has their layout from each version's own headers.
        unsafe {
            let portal = pg_sys::ActivePortal.as_ref()?;
            let desc = NonNull::new(portal.queryDesc)?;
            let query = desc.as_ref();
            let (estate, snapshot) = (query.estate.as_ref()?, query.snapshot.as_ref()?);
            let is_select = portal.strategy == pg_sys::PortalStrategy::PORTAL_ONE_SELECT
                && portal.status == pg_sys::PortalStatus::PORTAL_ACTIVE
                && portal.cursorOptions & pg_sys::CURSOR_OPT_HOLD as i32 == 0
                && portal.holdStore.is_null()
                && !portal.resowner.is_null();
            let is_alone = !pg_sys::IsTransactionBlock()
                && pg_sys::GetCurrentTransactionNestLevel() == 1
                && pg_sys::XactIsoLevel < pg_sys::XACT_REPEATABLE_READ as i32
                && pg_sys::GetTopTransactionIdIfAny() == pg_sys::InvalidTransactionId
                && !pg_sys::IsInParallelMode()
                && !pg_sys::HistoricSnapshotActive();
            // CreateQueryDesc() and standard_ExecutorStart() have registered it, PortalRunSelect() has made it the active one
            let is_ours_alone = pg_sys::ActiveSnapshotSet()
                && ptr::eq(pg_sys::GetActiveSnapshot(), snapshot)
                && ptr::eq(estate.es_snapshot, snapshot)
                && query.crosscheck_snapshot.is_null()
                && estate.es_crosscheck_snapshot.is_null()
                && (snapshot.active_count, snapshot.regd_count, snapshot.copied) == (1, 2, true);
            let may = is_select && is_alone && is_ours_alone && only_calls_us(query.plannedstmt.as_ref()?);
            may.then_some(Self { query: desc, owner: portal.resowner })
        }
    }

    /// Afterwards xmin of this backend is that of the snapshots that others in this session have, if any, and else it has none.
    fn give_snapshot_back(&self) {
        // SAFETY: the owner and the three references are those that `of_this_call` has seen, and each is given back to whom it was
        // taken from. With the last one SnapshotResetXmin() (snapmgr.c, 13 to 19) finds neither an active nor a registered
        // snapshot and clears xmin in our PGPROC (PGXACT in 13), so that ComputeXidHorizons(), GetOldestXmin() in 13, passes
        // over this backend as over one that is idle (procarray.c); where another snapshot is left, it stays. No status
        // flag is set, nothing depends on the transaction's end, and whatever takes a snapshot all the same, of the catalogs say,
        // has its xmin shown as ever.
        // Nothing looks at the pointers meanwhile: es_snapshot is for nodes that scan or lock, for triggers and for parallel
        // workers, of which a bare Result has none. ExecutorEnd() and FreeQueryDesc() may find NULL, which UnregisterSnapshot()
        // takes; a transaction that aborts, or a session that ends, calls neither (PortalCleanup() in portalcmds.c) and
        // frees what is registered and active, if anything.
        unsafe {
            let query = self.query.as_ptr();
            let estate = (*query).estate;
            pg_sys::InvalidateCatalogSnapshot();
            pg_sys::UnregisterSnapshotFromOwner((*estate).es_snapshot, self.owner);
            (*estate).es_snapshot = ptr::null_mut();
            pg_sys::UnregisterSnapshotFromOwner((*query).snapshot, self.owner);
            (*query).snapshot = ptr::null_mut();
            pg_sys::PopActiveSnapshot();
        }
    }

    /// A new one, where the executor and the portal had the old one. Raises an ERROR if there is no memory for it.
    fn take_snapshot(&self) {
        // SAFETY: GetSnapshotData() shows the new xmin while it holds ProcArrayLock, and sets TransactionXmin and RecentXmin with
        // it: they are never behind what has been removed or truncated meanwhile, and the horizon never goes back (which
        // a VACUUM that runs takes badly). The rest is what PortalStart(), ExecutorStart() and PortalRunSelect() did: two
        // references that `self.owner` remembers, and one on the stack of active snapshots, which PortalRunSelect() pops.
        unsafe {
            let query = self.query.as_ptr();
            let snapshot = pg_sys::RegisterSnapshotOnOwner(pg_sys::GetTransactionSnapshot(), self.owner);
            (*query).snapshot = snapshot;
            (*(*query).estate).es_snapshot = pg_sys::RegisterSnapshotOnOwner(snapshot, self.owner);
            pg_sys::PushActiveSnapshot(snapshot);
        }
    }
}

/// Whether a plan calls one function, which is ours, with arguments that need no calculation, and does nothing else. The function
/// that runs is then this one, called by the executor itself.
///
/// # Safety
/// A plan that is being executed.
unsafe fn only_calls_us(plan: &pg_sys::PlannedStmt) -> bool {
    // SAFETY: nodes are cast to what their tags say, and lists of a plan have the members that plannodes.h names.
    unsafe {
        if plan.commandType != pg_sys::CmdType::CMD_SELECT
            || plan.hasModifyingCTE
            || !plan.subplans.is_null()
            || !plan.rowMarks.is_null()
            || !is_a(plan.planTree.cast(), pg_sys::NodeTag::T_Result)
        {
            return false;
        }
        // a SELECT without FROM has an entry that stands for nothing
        let tables = PgList::<pg_sys::RangeTblEntry>::from_pg(plan.rtable);
        let result = &*plan.planTree.cast::<pg_sys::Result>();
        let is_bare = result.resconstantqual.is_null()
            && result.plan.qual.is_null()
            && result.plan.initPlan.is_null()
            && result.plan.lefttree.is_null()
            && result.plan.righttree.is_null();
        is_bare
            && tables.iter_ptr().all(|table| (*table).rtekind == pg_sys::RTEKind::RTE_RESULT)
            && called_alone(result.plan.targetlist).is_some_and(is_ours)
    }
}

/// The function that is all of a target list, if it is called with constants or with parameters of the statement.
///
/// # Safety
/// A target list of a plan.
unsafe fn called_alone(targets: *mut pg_sys::List) -> Option<pg_sys::Oid> {
    // SAFETY: as in `only_calls_us`.
    unsafe {
        let targets = PgList::<pg_sys::TargetEntry>::from_pg(targets);
        let target = targets.get_ptr(0).filter(|_| targets.len() == 1)?;
        if !is_a((*target).expr.cast(), pg_sys::NodeTag::T_FuncExpr) {
            return None;
        }
        let call = &*(*target).expr.cast::<pg_sys::FuncExpr>();
        let is_given = |argument: *mut pg_sys::Node| {
            is_a(argument, pg_sys::NodeTag::T_Const)
                || is_a(argument, pg_sys::NodeTag::T_Param)
                    && (*argument.cast::<pg_sys::Param>()).paramkind == pg_sys::ParamKind::PARAM_EXTERN
        };
        let arguments = PgList::<pg_sys::Node>::from_pg(call.args);
        (!call.funcretset && arguments.iter_ptr().all(is_given)).then_some(call.funcid)
    }
}

/// Whether a function is one of this library's, called without anything in between: neither SECURITY DEFINER nor a setting of its
/// own.
fn is_ours(function: pg_sys::Oid) -> bool {
    // SAFETY: looks into the catalogs: the snapshot is still there. Without a name the function has been dropped since the
    // plan was made, and fmgr_info() would raise an ERROR; it fills in what it is given.
    unsafe {
        let name = pg_sys::get_func_name(function);
        if name.is_null() {
            return false;
        }
        pg_sys::pfree(name.cast());
        let mut found = pg_sys::FmgrInfo::default();
        pg_sys::fmgr_info(function, &raw mut found);
        let library = |address: *const c_void| {
            let mut info = MaybeUninit::<libc::Dl_info>::uninit();
            (libc::dladdr(address, info.as_mut_ptr()) != 0).then(|| info.assume_init().dli_fbase)
        };
        let this = library((&raw const IS_LET_GO).cast());
        this.is_some() && found.fn_addr.is_some_and(|code| library(code as *const c_void) == this)
    }
}
