//! The live sockets of this instance, and what keeps them fed.
//!
//! Every socket knows the number of the last notification that it was given, for each user that it follows. News that
//! a user has more come from this process, from other instances through Redis, and from a sweep over PostgreSQL;
//! they carry no content. One pump reads what lies between a socket's number and the newest one from PostgreSQL and
//! hands it over in order. So a lost message costs a second, a doubled one nothing, and nobody who can write to Redis
//! can put words into a notification.

pub mod bus;
mod frame;
mod live;
mod pump;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use contracts::{SessionId, UserId};
use sqlx::PgPool;
use tokio::sync::{Notify, mpsc};
use uuid::Uuid;

pub use frame::Frame;
pub use live::{Cursor, Goodbye, Identity, Link, Live, MAX_FOLLOWED, MAX_WAITING, NotSent};

use crate::metrics;
use crate::notification::Notification;
use crate::notification::db::{self, Head, Want};
use bus::News;

/// Notifications that are read at once for one user. Each brings up to three frames, and all of a page fit into the
/// queue of a socket that reads.
const PAGE: i64 = 64;
/// News that may wait for Redis; what is too much, the sweep finds.
const MAX_NEWS: usize = 4096;
const RETRIES: u32 = 20;
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// The live sockets of this instance.
#[derive(Debug)]
pub struct Hub {
    db: PgPool,
    /// Tells our own news from others'.
    origin: String,
    sockets: Mutex<Sockets>,
    /// Wakes the pump.
    wake: Notify,
    /// News may have been lost.
    sweep_due: AtomicBool,
    news: mpsc::Sender<News>,
    next_id: AtomicU64,
    /// Over how long clients spread their return when this instance restarts.
    reconnect_spread: Duration,
    restarting: AtomicBool,
    leaving: AtomicBool,
}

#[derive(Debug, Default)]
struct Sockets {
    all: HashMap<u64, Arc<Live>>,
    /// How many of them each user holds.
    held: HashMap<UserId, usize>,
    followers: HashMap<UserId, HashMap<u64, Arc<Live>>>,
    watchers: HashMap<u64, Arc<Live>>,
    /// Users with news.
    stirred: HashSet<UserId>,
}

/// From where on a socket is given a user's notifications.
#[derive(Clone, Debug)]
pub struct Place {
    user: UserId,
    /// The last number that the client has.
    pub seq: i64,
    /// The last number there was when the place was taken.
    newest: i64,
    /// The highest number that had been deleted for its age then.
    purged: i64,
    /// Whether the client, which named the last number it has, gets all that came after it.
    pub recovered: Option<bool>,
}

/// A socket asked for more than it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMany;

impl Hub {
    /// A hub without sockets, and the news that have to go to the other instances.
    pub fn new(db: PgPool, reconnect_spread: Duration) -> (Self, mpsc::Receiver<News>) {
        let (news, outgoing) = mpsc::channel(MAX_NEWS);
        let hub = Self {
            db,
            origin: Uuid::new_v4().to_string(),
            sockets: Mutex::default(),
            wake: Notify::new(),
            sweep_due: AtomicBool::new(false),
            news,
            next_id: AtomicU64::new(1),
            reconnect_spread,
            restarting: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
        };
        (hub, outgoing)
    }

    /// Takes a socket in; whoever does so also takes it out again.
    pub fn open(&self, identity: Identity, link: Link, transport: &'static str) -> Arc<Live> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let return_after = platform::lifecycle::return_after(self.reconnect_spread);
        let live = Live::new(id, identity, link, transport, return_after);
        let live = Arc::new(live);
        {
            let mut sockets = self.sockets();
            sockets.all.insert(id, live.clone());
            if let Some(user) = &live.identity.user {
                *sockets.held.entry(user.clone()).or_default() += 1;
            }
        }
        if self.is_leaving() {
            self.dismiss(&live);
        } else if self.restarting.load(Ordering::SeqCst) {
            live.tell_restart();
        }
        live
    }

    /// How many sockets a user holds here.
    pub fn sockets_of(&self, user: &UserId) -> usize {
        self.sockets().held.get(user).copied().unwrap_or(0)
    }

    /// Takes a socket out.
    pub fn remove(&self, live: &Live) {
        let mut sockets = self.sockets();
        if sockets.all.remove(&live.id).is_some()
            && let Some(user) = &live.identity.user
        {
            sockets.give_back(user);
        }
        sockets.watchers.remove(&live.id);
        for user in live.cursors().keys() {
            sockets.unfollow(user, live.id);
        }
    }

    /// Takes a socket out and ends it with a reason.
    pub fn cut(&self, live: &Live, goodbye: Goodbye) {
        self.remove(live);
        if live.goodbye().is_none() {
            metrics::socket_cut(goodbye.code());
        }
        live.end(goodbye);
    }

    /// Follows a user's notifications: first, in order, those after `last_seq` where one is given, then live ones.
    /// Whether all that came after it is still there.
    ///
    /// # Errors
    /// Where the socket follows too many.
    pub async fn follow(
        &self,
        live: &Arc<Live>,
        user: &UserId,
        last_seq: Option<i64>,
    ) -> Result<Option<bool>, TooMany> {
        let Some(place) = self.take_place(live, user, last_seq).await? else {
            return Ok(None);
        };
        let recovered = place.recovered;
        self.catch_up(live, place).await;
        Ok(recovered)
    }

    /// Fixes from where on a socket is given a user's notifications; `None` where it follows that user already. What
    /// is stored from now on reaches it, however long the catching up takes.
    ///
    /// # Errors
    /// Where the socket follows too many.
    pub async fn take_place(
        &self,
        live: &Arc<Live>,
        user: &UserId,
        last_seq: Option<i64>,
    ) -> Result<Option<Place>, TooMany> {
        // Who asks twice hears the second answer when the place is fixed.
        let _turn = live.turn.lock().await;
        let followed = live.cursors().len();
        if live.watches_all || live.cursors().contains_key(user) {
            return Ok(None);
        }
        if followed >= MAX_FOLLOWED {
            return Err(TooMany);
        }
        let users = [user.clone()];
        let Some(heads) = self.patiently(live, || db::heads(&self.db, &users)).await else {
            self.cut(live, Goodbye::CatchUpFailed);
            return Ok(None);
        };
        let (newest, purged) = heads
            .first()
            .map_or((0, 0), |head| (head.last_seq, head.purged_seq));
        let seq = last_seq.map_or(newest, |seq| seq.clamp(0, newest));
        // A number that was never given out comes from another store: what the client has is not ours.
        let recovered = last_seq.map(|said| seq >= purged && said <= newest);
        let catching_up = Cursor {
            seq: None,
            unread: None,
        };
        live.cursors().insert(user.clone(), catching_up);
        Ok(Some(Place {
            user: user.clone(),
            seq,
            newest,
            purged,
            recovered,
        }))
    }

    /// Gives a socket what lies before its place, and then live notifications.
    pub async fn catch_up(&self, live: &Arc<Live>, place: Place) {
        match self.read_up(live, &place).await {
            Ok(seq) => self.enrol(live, &place.user, seq),
            Err(goodbye) => self.cut(live, goodbye),
        }
    }

    /// Stops following.
    pub fn unfollow(&self, live: &Live, user: &UserId) {
        self.sockets().unfollow(user, live.id);
        live.cursors().remove(user);
    }

    /// Where every user's notifications stand, for a socket that will watch them all.
    pub async fn look_around(&self, live: &Arc<Live>) -> Option<Vec<Head>> {
        let heads = self.patiently(live, || db::all_heads(&self.db)).await;
        if heads.is_none() {
            self.cut(live, Goodbye::CatchUpFailed);
        }
        heads
    }

    /// Watches every user's notifications, from where they stood.
    pub fn watch_all(&self, live: &Arc<Live>, heads: Vec<Head>) {
        {
            let mut sockets = self.sockets();
            if !sockets.all.contains_key(&live.id) {
                return;
            }
            let seen = heads.into_iter().map(|head| {
                let cursor = Cursor {
                    seq: Some(head.last_seq),
                    unread: Some(head.unread),
                };
                (head.user_id, cursor)
            });
            live.cursors().extend(seen);
            sockets.watchers.insert(live.id, live.clone());
        }
        self.sweep_soon();
    }

    /// Says on this instance and all others that a user's notifications have changed.
    pub fn announce(&self, user: &UserId) {
        self.stir([user.clone()]);
        self.spread(News {
            users: vec![user.clone()],
            ..News::default()
        });
    }

    /// Sends a frame that is not stored to the live sockets of a user, on this instance and all others.
    pub fn push(&self, user: &UserId, event: &str, data: &serde_json::Value) {
        self.push_here(user, &Frame::new(event.to_owned(), data.clone()));
        let push = bus::Push {
            user: user.clone(),
            event: event.to_owned(),
            data: data.clone(),
        };
        self.spread(News {
            pushes: vec![push],
            ..News::default()
        });
    }

    /// Says on all instances that a session may have ended.
    pub fn announce_session(&self, session: &SessionId) {
        self.spread(News {
            sessions: vec![session.clone()],
            ..News::default()
        });
    }

    /// The live sockets that are held by a session, or all that are held by one.
    pub fn held_by(&self, session: Option<&SessionId>) -> Vec<Arc<Live>> {
        let sockets = self.sockets();
        let held = sockets
            .all
            .values()
            .filter(|live| match &live.identity.credentials {
                Some((_, of)) => session.is_none_or(|session| session == of),
                None => false,
            });
        held.cloned().collect()
    }

    /// Tells the clients of all sockets, and of those that still come, that this instance restarts and when each of
    /// them should come back.
    pub fn announce_restart(&self) {
        self.restarting.store(true, Ordering::SeqCst);
        let all: Vec<_> = self.sockets().all.values().cloned().collect();
        all.iter().for_each(|live| live.tell_restart());
    }

    /// Ends all sockets, and those that still come.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::SeqCst);
        let all: Vec<_> = self.sockets().all.values().cloned().collect();
        for live in all {
            self.dismiss(&live);
        }
    }

    fn dismiss(&self, live: &Live) {
        if live.socketio().is_some() {
            // The library sends what waits before it closes; the other transports say it as their last word.
            live.tell_restart();
        }
        self.cut(live, Goodbye::Leaving);
    }

    /// Has the pump compare all sockets with the store at once.
    pub fn sweep_soon(&self) {
        self.sweep_due.store(true, Ordering::SeqCst);
        self.wake.notify_one();
    }

    /// Whether this instance leaves.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::SeqCst)
    }

    /// Names this instance among all that ever were.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Whose sockets are open, and how many of each. Those of nobody do not count.
    pub fn present(&self) -> HashMap<UserId, i64> {
        let mut present = HashMap::new();
        for live in self.sockets().all.values() {
            if let Some(user) = &live.identity.user {
                *present.entry(user.clone()).or_default() += 1;
            }
        }
        present
    }

    /// How many sockets are open.
    pub fn open_sockets(&self) -> usize {
        self.sockets().all.len()
    }

    /// Reads page after page and hands it over; the number reached. What came meanwhile the pump brings.
    async fn read_up(&self, live: &Arc<Live>, place: &Place) -> Result<i64, Goodbye> {
        let (mut seq, newest) = (place.seq, place.newest);
        while seq < newest {
            let wants = [Want {
                user_id: place.user.clone(),
                after: seq,
                upto: newest,
            }];
            let page = self
                .patiently(live, || db::pages(&self.db, &wants, PAGE))
                .await
                .ok_or(Goodbye::CatchUpFailed)?;
            // Read after the page, so it knows of whatever the page lacks.
            let users = [place.user.clone()];
            let heads = self
                .patiently(live, || db::heads(&self.db, &users))
                .await
                .ok_or(Goodbye::CatchUpFailed)?;
            let purged = heads.first().map_or(0, |head| head.purged_seq);
            if purged > place.purged && purged > seq {
                // The client comes back with the number it has, and is told that there is a gap.
                return Err(Goodbye::CatchUpFailed);
            }
            let is_last = (page.len() as i64) < PAGE;
            for stored in page {
                seq = stored.seq;
                let frame = Frame::notification(seq, &Notification::from(stored));
                live.send_patiently(&frame)
                    .await
                    .map_err(|_| Goodbye::Slow)?;
            }
            if is_last {
                seq = newest;
            }
        }
        Ok(seq)
    }

    /// Asks the store again and again for a while, as long as the socket is there.
    async fn patiently<T, F>(&self, live: &Live, ask: impl Fn() -> F) -> Option<T>
    where
        F: Future<Output = sqlx::Result<T>>,
    {
        for _ in 0..RETRIES {
            match ask().await {
                Ok(answer) => return Some(answer),
                Err(error) => tracing::debug!("a socket waits for the store: {error}"),
            }
            tokio::select! {
                () = live.ended.cancelled() => return None,
                () = tokio::time::sleep(RETRY_PAUSE) => {}
            }
        }
        None
    }

    fn enrol(&self, live: &Arc<Live>, user: &UserId, seq: i64) {
        let mut sockets = self.sockets();
        // It may have gone, or changed its mind, while it caught up.
        let stays = sockets.all.contains_key(&live.id);
        let mut cursors = live.cursors();
        let Some(cursor) = cursors.get_mut(user).filter(|_| stays) else {
            return;
        };
        cursor.seq = Some(seq);
        sockets
            .followers
            .entry(user.clone())
            .or_default()
            .insert(live.id, live.clone());
        sockets.stirred.insert(user.clone());
        self.wake.notify_one();
    }

    /// Marks users that somebody here follows, and wakes the pump.
    fn stir(&self, users: impl IntoIterator<Item = UserId>) {
        let mut sockets = self.sockets();
        let watched = !sockets.watchers.is_empty();
        let Sockets {
            followers, stirred, ..
        } = &mut *sockets;
        stirred.extend(
            users
                .into_iter()
                .filter(|user| watched || followers.contains_key(user)),
        );
        if !stirred.is_empty() {
            self.wake.notify_one();
        }
    }

    fn push_here(&self, user: &UserId, frame: &Arc<Frame>) {
        let following = self.sockets().following(user);
        for live in following {
            if live.send(frame) == Err(NotSent::Full) {
                self.cut(&live, Goodbye::Slow);
            }
        }
    }

    fn spread(&self, news: News) {
        // A full queue means that Redis is away; the other instances' sweeps find it.
        if self.news.try_send(news).is_err() {
            tracing::debug!("news for other instances are left to their sweep");
        }
    }

    fn sockets(&self) -> MutexGuard<'_, Sockets> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sockets {
    fn give_back(&mut self, user: &UserId) {
        if let Some(held) = self.held.get_mut(user) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(user);
            }
        }
    }

    fn unfollow(&mut self, user: &UserId, id: u64) {
        if let Some(followers) = self.followers.get_mut(user) {
            followers.remove(&id);
            if followers.is_empty() {
                self.followers.remove(user);
            }
        }
    }

    fn following(&self, user: &UserId) -> Vec<Arc<Live>> {
        let followers = self
            .followers
            .get(user)
            .into_iter()
            .flat_map(HashMap::values);
        followers.chain(self.watchers.values()).cloned().collect()
    }
}
