package projections

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/wheelrefinery/refinery/events"
)

func TestVersionKey(t *testing.T) {
	for key, versions := range map[string][]string{
		"1": {"1", "1.0", "1.0.0", "v1.0", "01.0"}, "10": {"10", "10.0"}, "1.0.1": {"1.0.1", "1.0.1.0"}, "0": {"0", "0.0"},
		"1!1rc1": {"1!1.0rc1", "1!1.0.RC1"}, "1+ubuntu.1": {"1.0+ubuntu.1", "1+Ubuntu-1", "1.0+ubuntu_1"}, "1.post2": {"1.0-2", "1.post2"}, "nonsense": {"nonsense"}, "": {""},
	} {
		for _, v := range versions {
			same(t, key, VersionKey(v))
		}
	}
}

func TestPackages(t *testing.T) {
	m := newMemory()
	p := top[summaryTables](m, "summary")
	m.apply(t, build(flask, events.BuildQueued{}, events.BuildLeased{Attempt: 1}, events.BuildFailed{Attempt: 1, Class: "test", Reason: "red"})...)
	other := flask
	other.Version, other.PythonTag = "4.0", "cp312"
	m.apply(t, build(other, events.BuildQueued{}, events.BuildLeased{Attempt: 1}, events.BuildReleased{Attempt: 1}, events.BuildLeased{Attempt: 2},
		events.BuildSucceeded{Attempt: 2, DurationMS: 30})...)
	m.apply(t, build(flask, events.BuildQueued{}, events.BuildLeased{Attempt: 2}, events.BuildSucceeded{Attempt: 2, DurationMS: 10})...)
	m.apply(t, build(jinja, events.BuildQueued{})...)
	row, _ := p.packages.Get("flask")
	same(t, PackageRow{
		Name: "flask", Position: 1, UpdatedAt: m.time(11), UpdatedPosition: 11, Versions: 2, Variants: 2, Succeeded: 2, Failed: 1,
		Counts:    countsOf(map[string]int32{Built: 2}),
		Durations: Durations{2, 10, 30, 30},
		Failure:   &PackageFailure{3, m.time(3), "3.0", "cp311", "linux_s390x", 1, "test", "red"},
	}, row)
}

func TestDurations(t *testing.T) {
	for _, c := range []struct {
		ms   []int64
		want Durations
	}{
		{[]int64{7}, Durations{1, 7, 7, 7}},
		{[]int64{3, 1, 2}, Durations{3, 2, 3, 3}},
		{[]int64{10, 9, 8, 7, 6, 5, 4, 3, 2, 1}, Durations{10, 5, 9, 10}},
		{[]int64{11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1}, Durations{11, 6, 10, 11}},
	} {
		same(t, c.want, durationsOf(c.ms))
	}
	m := newMemory()
	for i := range mostTimes + 10 {
		m.apply(t, build(flask, events.BuildSucceeded{Attempt: 1, DurationMS: int64(mostTimes + 10 - i)})...)
	}
	times, _ := top[summaryTables](m, "summary").times.Get("flask")
	same(t, mostTimes, len(times.MS))
	same(t, int64(mostTimes), slices.Max(times.MS)) // the oldest, which were slower, are forgotten
}

func TestFailuresOfAnHour(t *testing.T) {
	m := newMemory() // an event a minute
	long := strings.Repeat("é", 300)
	for i := range mostReasons + 5 {
		m.batch(t, build(flask, events.BuildFailed{Class: "compiler", Reason: fmt.Sprintf("%d", i)})...)
		m.at--
	}
	m.batch(t, build(jinja, events.BuildFailed{Class: "compiler", Reason: "0"}, events.BuildFailed{Class: "test", Reason: long})...)
	s := top[summaryTables](m, "summary")
	hour := m.time(1).Unix() / 3600
	compiler, _ := s.failures.Get(FailureKey{hour, "compiler"})
	same(t, FailureHour{hour, "compiler", mostReasons + 6, mostReasons}, compiler)
	first, _ := s.reasons.Get(ReasonKey{hour, "compiler", "0"})
	same(t, FailureReason{hour, "compiler", "0", 2, 1, m.time(1), jinja.Stream()}, first)
	_, ok := s.reasons.Get(ReasonKey{hour, "compiler", fmt.Sprint(mostReasons)})
	same(t, false, ok)
	_, ok = s.reasons.Get(ReasonKey{hour, "test", strings.Repeat("é", 100) + "…"})
	same(t, true, ok)
}

func TestTheSlowestOfAnHour(t *testing.T) {
	m := newMemory()
	for i := range 200 { // within one hour
		m.batch(t, build(flask, events.BuildSucceeded{Attempt: i, DurationMS: int64(i * 37 % 200)})...)
		m.at--
	}
	s := top[summaryTables](m, "summary")
	hour := m.time(1).Unix() / 3600
	var got []int64
	for place := range int64(mostSlow) {
		b, ok := s.slow.Get(SlowKey{hour, place})
		if !ok {
			t.Fatalf("place %d is empty", place)
		}
		same(t, b.DurationMS, int64(b.Attempt*37%200))
		got = append(got, b.DurationMS)
	}
	slices.Sort(got)
	var want []int64
	for i := range int64(mostSlow) {
		want = append(want, 150+i)
	}
	same(t, want, got)
	m.at += 60
	m.apply(t, build(flask, events.BuildFailed{Attempt: 1, DurationMS: 1})...)
	b, _ := s.slow.Get(SlowKey{hour + 1, 0})
	same(t, Failed, b.Status)
}

// Clocks differ; positions in order have times in order all the same.
func TestHistoryGoesForward(t *testing.T) {
	f := history.open()
	at := func(position int64, at time.Time) events.Recorded {
		return events.Recorded{Position: position, Stream: flask.Stream(), Version: position, Time: at, Event: events.BuildCancelled{Reason: "x"}}
	}
	if err := f.run(t.Context(), nothing{}, "history", []events.Recorded{at(1, epoch), at(2, epoch.Add(-time.Second)), at(3, epoch.Add(time.Second))}); err != nil {
		t.Fatal(err)
	}
	var times []time.Time
	for _, r := range f.top.(*historyTables).entries.rows {
		times = append(times, r.Time)
	}
	same(t, []time.Time{epoch, epoch, epoch.Add(time.Second)}, times)
}
