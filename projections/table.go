package projections

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
)

// keyed is a row type that says its key. A key of several columns is a struct of the key fields, in order.
type keyed[K comparable] interface{ Key() K }

// slot is what is known of a key: its row, or that there is none.
type slot[R any] struct {
	row R
	ok  bool
}

// cacheRows bounds the rows that a table keeps in memory.
const cacheRows = 8_000

// table is a read model's table as handlers see it: rows by key. What Get returns must not be changed in place where rows hold slices or
// maps: copy those first.
type table[K comparable, R keyed[K]] struct {
	shape
	stored     map[K]slot[R] // read for this batch
	work       map[K]slot[R] // what this batch makes of it
	missed     map[K]struct{}
	cleared    bool
	sieve      *sieve[K]     // nil: the table was not empty when this began
	young, old map[K]slot[R] // as of the last save; two generations, the older is dropped when the younger is full
}

// Get returns the row of key.
func (t *table[K, R]) Get(key K) (R, bool) {
	if s, ok := t.work[key]; ok {
		return s.row, s.ok
	}
	if t.cleared {
		return slot[R]{}.row, false
	}
	s, ok := t.known(key)
	if !ok {
		t.missed[key] = struct{}{}
	}
	return s.row, s.ok
}

// known is what the database is known to hold under key.
func (t *table[K, R]) known(key K) (slot[R], bool) {
	for _, m := range [...]map[K]slot[R]{t.stored, t.young, t.old} {
		if s, ok := m[key]; ok {
			return s, true
		}
	}
	return slot[R]{}, t.sieve != nil && !t.sieve.has(key)
}

// GetOwn is Get for a table keyed by stream to which only the stream's own events add: the first of them need not look.
func (t *table[K, R]) GetOwn(key K, m events.Recorded) (R, bool) {
	if m.Version == 1 {
		t.stored[key] = slot[R]{}
	}
	return t.Get(key)
}

// GetUnder is Get for a row that is there only when another one is: while that is not, it need not look.
func (t *table[K, R]) GetUnder(other bool, key K) (R, bool) {
	if !other {
		s := t.work[key]
		return s.row, s.ok
	}
	return t.Get(key)
}

// Put stores row in place of the one that has its key, if any.
func (t *table[K, R]) Put(row R) { t.work[row.Key()] = slot[R]{row, true} }

// Delete removes the row of key, if there is one.
func (t *table[K, R]) Delete(key K) { t.work[key] = slot[R]{} }

// Clear removes every row.
func (t *table[K, R]) Clear() {
	clear(t.work)
	t.cleared = true
}

func (t *table[K, R]) begin() {
	clear(t.work)
	clear(t.missed)
	t.cleared = false
}

func (t *table[K, R]) misses() bool { return len(t.missed) > 0 }

func (t *table[K, R]) load(ctx context.Context, q Querier, schema string) error {
	keys := slices.Collect(maps.Keys(t.missed))
	args, err := t.keyArrays(reflect.ValueOf(keys))
	if err != nil {
		return err
	}
	rows, err := Query[R](ctx, q, fmt.Sprintf("from %s.%s where (%s) in (select * from unnest(%s))",
		schema, t.name, names(t.keys), params(t.keys)), args...)
	if err != nil {
		return err
	}
	for _, k := range keys {
		t.stored[k] = slot[R]{}
	}
	for _, r := range rows {
		t.stored[r.Key()] = slot[R]{r, true}
	}
	return nil
}

func (t *table[K, R]) write(w *eventlog.Writes, schema string) error {
	var fresh, rows []R
	var gone []K
	for k, s := range t.work {
		known, ok := t.known(k)
		absent := ok && !known.ok
		switch {
		case s.ok && absent:
			fresh = append(fresh, s.row)
		case s.ok:
			rows = append(rows, s.row)
		case t.cleared, absent: // not there anyway
		default:
			gone = append(gone, k)
		}
	}
	if t.cleared {
		w.Queue(fmt.Sprintf("delete from %s.%s", schema, t.name))
	}
	if len(gone) > 0 {
		args, err := t.keyArrays(reflect.ValueOf(gone))
		if err != nil {
			return err
		}
		// Against a plan that was made while the table was empty.
		w.Queue("set local plan_cache_mode = force_custom_plan")
		w.Queue(fmt.Sprintf("delete from %s.%s where (%s) in (select * from unnest(%s))", schema, t.name, names(t.keys), params(t.keys)), args...)
	}
	return errors.Join(t.add(w, schema, reflect.ValueOf(fresh)), t.insert(w, schema, reflect.ValueOf(rows), true))
}

func (t *table[K, R]) commit() {
	if t.cleared {
		clear(t.young)
		clear(t.old)
		clear(t.stored)
	}
	for _, m := range []map[K]slot[R]{t.stored, t.work} {
		for k, s := range m {
			if len(t.young) >= cacheRows/2 {
				t.old, t.young = t.young, make(map[K]slot[R], cacheRows/2)
			}
			t.young[k] = s
		}
	}
	if t.sieve != nil {
		for k := range t.work {
			t.sieve.add(k)
		}
	}
	clear(t.stored)
}

func (t *table[K, R]) reset(empty bool) {
	t.begin()
	t.sieve = nil
	if empty {
		t.sieve = &sieve[K]{seed: maphash.MakeSeed()}
	}
	clear(t.stored)
	t.young, t.old = map[K]slot[R]{}, map[K]slot[R]{}
}

// sieve remembers which keys were ever written to a table that was empty: a Bloom filter. So filling a table from the start of the log asks
// the database for hardly any row that is not there.
type sieve[K comparable] struct {
	seed maphash.Seed
	bits []uint64
}

// sieveBits make one wrong answer in eighty for 100,000 keys, and more from there on; each costs a look.
const sieveBits = 1 << 20

func (s *sieve[K]) places(key K) (at [4]uint32) {
	h := maphash.Comparable(s.seed, key)
	for i := range at {
		at[i] = (uint32(h) + uint32(i)*uint32(h>>32)) % sieveBits
	}
	return at
}

func (s *sieve[K]) add(key K) {
	if s.bits == nil {
		s.bits = make([]uint64, sieveBits/64)
	}
	for _, at := range s.places(key) {
		s.bits[at/64] |= 1 << (at % 64)
	}
}

func (s *sieve[K]) has(key K) bool {
	if s.bits == nil {
		return false
	}
	for _, at := range s.places(key) {
		if s.bits[at/64]&(1<<(at%64)) == 0 {
			return false
		}
	}
	return true
}

// journal is a table to which rows are only added.
type journal[R any] struct {
	shape
	rows []R
}

// Insert adds a row; its key must be new.
func (t *journal[R]) Insert(row R) { t.rows = append(t.rows, row) }

func (t *journal[R]) begin()                                      { t.rows = t.rows[:0] }
func (t *journal[R]) misses() bool                                { return false }
func (t *journal[R]) load(context.Context, Querier, string) error { return nil }
func (t *journal[R]) write(w *eventlog.Writes, schema string) error {
	return t.add(w, schema, reflect.ValueOf(t.rows))
}
func (t *journal[R]) commit()    {}
func (t *journal[R]) reset(bool) { t.rows = nil }

// stored is a table as the fold drives it: begin a pass; when it missed rows, load them and pass again; write; commit once that is saved.
// reset forgets what is known of the database, unless that is that the table is empty.
type stored interface {
	begin()
	misses() bool
	load(ctx context.Context, q Querier, schema string) error
	write(w *eventlog.Writes, schema string) error
	commit()
	reset(empty bool)
	create(schema string) string
	createIndexes(schema string) []string
}

// shape is a table's name, columns and indexes.
type shape struct {
	name    string
	columns []column
	keys    []column
	row     reflect.Type
	indexes []string

	insertion, replacement string // SQL after "insert into <schema>.", and after that where rows may be there already
}

func newTable[K comparable, R keyed[K]](m *models, name string, indexes ...string) *table[K, R] {
	t := &table[K, R]{
		shape: newShape[R](name, indexes), stored: map[K]slot[R]{}, work: map[K]slot[R]{}, missed: map[K]struct{}{},
	}
	t.reset(false)
	*m = append(*m, t)
	return t
}

func newJournal[R any](m *models, name string, indexes ...string) *journal[R] {
	t := &journal[R]{shape: newShape[R](name, indexes)}
	*m = append(*m, t)
	return t
}

// models collects the tables of a read model. Indexes are given as what follows "create index … on <table>".
type models []stored

func newShape[R any](name string, indexes []string) shape {
	s := shape{name: name, columns: columnsOf(reflect.TypeFor[R]()), row: reflect.TypeFor[R](), indexes: indexes}
	var values, set []string
	for i, c := range s.columns {
		// unnest of each alone: what each of one unnest of all gives, Postgres would store first.
		values = append(values, fmt.Sprintf("unnest($%d::%s[])", i+1, c.sql))
		if c.key {
			s.keys = append(s.keys, c)
		} else {
			set = append(set, c.name+" = excluded."+c.name)
		}
	}
	s.insertion = fmt.Sprintf("%s (%s) select %s", name, names(s.columns), strings.Join(values, ", "))
	s.replacement = fmt.Sprintf(" on conflict (%s) do ", names(s.keys))
	if len(set) > 0 {
		s.replacement += "update set " + strings.Join(set, ", ")
	} else {
		s.replacement += "nothing"
	}
	return s
}

func (s *shape) create(schema string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "create table %s.%s (", schema, s.name)
	for _, c := range s.columns {
		null := " not null"
		if !c.key && (c.sql == "timestamptz" || c.sql == "uuid") {
			null = ""
		}
		sql := c.sql
		if sql == "text" {
			sql = `text collate "C"` // sorts and compares several times faster, and the same on every server
		}
		fmt.Fprintf(&b, "%s %s%s, ", c.name, sql, null)
	}
	fmt.Fprintf(&b, "primary key (%s))", names(s.keys))
	return b.String()
}

func (s *shape) createIndexes(schema string) []string {
	sql := make([]string, len(s.indexes))
	for i, on := range s.indexes {
		sql[i] = fmt.Sprintf("create index if not exists %s_%d on %s.%s %s", s.name, i+1, schema, s.name, on)
	}
	return sql
}

// params is "$1::text[], $2::bigint[]" for columns.
func params(cols []column) string {
	s := make([]string, len(cols))
	for i, c := range cols {
		s[i] = fmt.Sprintf("$%d::%s[]", i+1, c.sql)
	}
	return strings.Join(s, ", ")
}

// worthCopy is how many new rows of a table are worth the round trips of a COPY, which takes half the time of an insert for each.
var worthCopy = 200 // less in a test

// add writes rows whose keys are not in the table.
func (s *shape) add(w *eventlog.Writes, schema string, rows reflect.Value) error {
	if rows.Len() < worthCopy {
		return s.insert(w, schema, rows, false)
	}
	columns := make([]string, len(s.columns))
	for i, c := range s.columns {
		columns[i] = c.name
	}
	w.Copies = append(w.Copies, eventlog.Copy{
		Table: pgx.Identifier{schema, s.name}, Columns: columns,
		Rows: &copying{columns: s.columns, rows: rows, values: make([]any, len(columns))},
	})
	return nil
}

// insert writes rows, with upsert in the place of those that have their keys: to look for them costs a third more.
func (s *shape) insert(w *eventlog.Writes, schema string, rows reflect.Value, upsert bool) error {
	n := rows.Len()
	if n == 0 {
		return nil
	}
	args := make([]any, len(s.columns))
	for i, c := range s.columns {
		var err error
		args[i], err = array(s.row.FieldByIndex(c.index).Type, n, func(j int) reflect.Value { return rows.Index(j).FieldByIndex(c.index) })
		if err != nil {
			return err
		}
	}
	sql := "insert into " + schema + "." + s.insertion
	if upsert {
		sql += s.replacement
	}
	w.Queue(sql, args...)
	return nil
}

// keyArrays turns a slice of keys into one array for each key column.
func (s *shape) keyArrays(keys reflect.Value) ([]any, error) {
	args := make([]any, len(s.keys))
	for i := range s.keys {
		at := func(j int) reflect.Value { return keys.Index(j) }
		t := keys.Type().Elem()
		if t.Kind() == reflect.Struct {
			t = t.Field(i).Type
			at = func(j int) reflect.Value { return keys.Index(j).Field(i) }
		}
		var err error
		if args[i], err = array(t, keys.Len(), at); err != nil {
			return nil, err
		}
	}
	return args, nil
}
