package bustest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/bus"
)

// Main plays a part in another process, and does not return then, if this test binary was started for that. TestMain calls it first.
func Main(open func(address, owner string, logger *slog.Logger) (bus.Bus, error)) {
	role := os.Getenv("BUSTEST_ROLE")
	if role == "" {
		return
	}
	b, err := open(os.Getenv("BUSTEST_ADDRESS"), os.Getenv("BUSTEST_OWNER"), slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err == nil {
		err = map[string]func(bus.Bus, string) error{"publish": publishChild, "consume": consumeChild}[role](b, os.Getenv("BUSTEST_TOPIC"))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// child runs this test binary as another process that plays a role on a topic.
func (tr Transport) child(t *testing.T, role, topic, owner string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	cmd, out := Child(t, "BUSTEST_ROLE="+role, "BUSTEST_ADDRESS="+tr.Address, "BUSTEST_TOPIC="+topic, "BUSTEST_OWNER="+owner)
	return cmd, bufio.NewScanner(out)
}

// Child runs this test binary as another process, with something more in its environment, and ends it with the test.
func Child(t testing.TB, env ...string) (*exec.Cmd, io.Reader) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	return cmd, out
}

const childPublishers = 4

// publishChild publishes with some publishers until it is killed, each numbering its messages, and prints each one when Publish has
// returned.
func publishChild(b bus.Bus, topic string) error {
	var wg sync.WaitGroup
	errs := make(chan error, childPublishers)
	for p := range childPublishers {
		wg.Go(func() {
			for i := 0; ; i++ {
				if err := b.Publish(topic, Keyed(strconv.Itoa(p), strconv.Itoa(i))); err != nil {
					errs <- err
					return
				}
				fmt.Printf("%d %d\n", p, i) // one write: lines of goroutines do not mix
			}
		})
	}
	wg.Wait()
	return <-errs
}

// consumeChild takes messages, prints their payloads, and acks those that do not say "hold".
func consumeChild(b bus.Bus, topic string) error {
	s, err := b.Subscriber("g")
	if err != nil {
		return err
	}
	ch, err := s.Subscribe(context.Background(), topic)
	if err != nil {
		return err
	}
	for m := range ch {
		fmt.Println(string(m.Payload))
		if string(m.Payload) != "hold" {
			m.Ack()
		}
	}
	return nil
}

// A process that is killed gives what it had not acknowledged to another one, and nothing before.
func testCrashBeforeAck(t *testing.T, tr Transport) {
	b, name := tr.open(t), topic()
	Publish(t, b, name, Keyed("k1", "one"), Keyed("k2", "hold"), Keyed("k3", "two"), Keyed("k2", "after"))
	cmd, lines := tr.child(t, "consume", name, "")
	for range 3 {
		if !lines.Scan() {
			t.Fatal("child ended")
		}
		if lines.Text() == "after" {
			t.Fatal("the next of a key was delivered before the one before it was acknowledged")
		}
	}
	ch, _ := Subscribe(t, b, "g", name)
	ExpectNone(t, ch, 300*time.Millisecond) // the child has it
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	killed := time.Now()
	// What was acknowledged may come too, if that was not stored.
	for order := ""; order != "hold after"; {
		m := Receive(t, ch)
		if p := string(m.Payload); p == "hold" || p == "after" {
			order = strings.TrimSpace(order + " " + p)
		}
		if order == "after" {
			t.Fatal("the second of a key came first")
		}
		m.Ack()
	}
	if d := time.Since(killed); d > tr.Takeover {
		t.Errorf("takeover after %v", d)
	}
}

// A process that is killed and starts again under its name has at once what it held; and one that is closed leaves it to others at once.
func testRestart(t *testing.T, tr Transport) {
	publisher, name, owner := tr.open(t), topic(), uuid.NewString()
	soon := max(tr.Takeover/3, time.Second) // well before a process that says nothing is given up
	Publish(t, publisher, name, Keyed("k", "one"), Keyed("k", "hold"))
	cmd, lines := tr.child(t, "consume", name, owner)
	for lines.Scan() && lines.Text() != "hold" {
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	receive := func(ch <-chan *message.Message, want string, begin time.Time) {
		t.Helper()
		for payload := ""; payload != want; { // what was acknowledged may come again
			m := Receive(t, ch)
			payload = string(m.Payload)
			m.Ack()
		}
		if d := time.Since(begin); d > soon {
			t.Errorf("%q came after %v", want, d)
		}
	}
	killed := time.Now()
	again := tr.openAs(t, owner)
	ch, _ := Subscribe(t, again, "g", name)
	receive(ch, "hold", killed)

	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	closed := time.Now()
	Publish(t, publisher, name, Keyed("k", "last"))
	ch, _ = Subscribe(t, tr.openAs(t, uuid.NewString()), "g", name)
	receive(ch, "last", closed)
}

// Of several processes one reads the commands, and the next when that one is closed.
func testStandby(t *testing.T, tr Transport) {
	group, readers := uuid.NewString(), [2]bus.Bus{tr.open(t), tr.open(t)}
	publisher := tr.open(t)
	var channels [2]<-chan *message.Message
	for i := range channels {
		channels[i], _ = Subscribe(t, readers[i], group, bus.TopicCommands)
	}
	const keys = 40
	read := func() (by [2]int) {
		t.Helper()
		for k := range keys {
			Publish(t, publisher, bus.TopicCommands, Keyed(uuid.NewString(), strconv.Itoa(k)))
		}
		for by[0]+by[1] < keys {
			var m *message.Message
			select {
			case m = <-channels[0]:
				by[0]++
			case m = <-channels[1]:
				by[1]++
			case <-time.After(Patience):
				t.Fatalf("they have read %v", by)
			}
			m.Ack()
		}
		return by
	}
	read() // while it is settled who reads
	time.Sleep(2 * time.Second)
	by := read()
	if by[0] != 0 && by[1] != 0 {
		t.Fatalf("both read: %v", by)
	}
	active := 0
	if by[1] != 0 {
		active = 1
	}
	if err := readers[active].Close(); err != nil {
		t.Fatal(err)
	}
	channels[active] = nil // it is closed
	read()
}

// What Publish has returned for survives the publisher.
func testCrashOfPublisher(t *testing.T, tr Transport) {
	b, name := tr.open(t), topic()
	cmd, lines := tr.child(t, "publish", name, "")
	last := map[string]int{}
	for lines.Scan() {
		key, number, _ := strings.Cut(lines.Text(), " ")
		i, err := strconv.Atoi(number)
		if err != nil {
			t.Fatalf("child printed %q", lines.Text())
		}
		if len(last) < childPublishers {
			if last[key] = i; len(last) == childPublishers {
				time.AfterFunc(100*time.Millisecond, func() { _ = cmd.Process.Kill() })
			}
		}
		last[key] = max(last[key], i)
	}
	if err := lines.Err(); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || len(last) < childPublishers {
		t.Fatalf("child ended by itself after %v", last)
	}
	ch, _ := Subscribe(t, b, "g", name)
	next, open := map[string]int{}, len(last)
	for open > 0 {
		m := Receive(t, ch)
		key := m.Metadata.Get(bus.KeyMetadata)
		if string(m.Payload) != strconv.Itoa(next[key]) {
			t.Fatalf("key %s: received %s, want %d", key, m.Payload, next[key])
		}
		if next[key] == last[key] {
			open--
		}
		next[key]++
		m.Ack()
	}
}

// The server is killed and comes back while messages flow: what was published is delivered, in order, and nobody need reconnect.
func testServerKilled(t *testing.T, tr Transport) {
	const keys, each = 16, 200
	f := newFlow(t, topic())
	publisher, first, second := tr.open(t), tr.open(t), tr.open(t)
	f.consume(first)
	f.consume(second)
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.publish(publisher, keys, each, 10*time.Millisecond)
	}()
	for range 2 {
		time.Sleep(500 * time.Millisecond)
		tr.Kill(t)
		time.Sleep(200 * time.Millisecond)
		tr.Start(t)
	}
	<-done
	f.waitFor(keys, each, 2*Patience+2*tr.Takeover)
	t.Logf("%d of %d came again", f.again, keys*each)
}

// While the server is gone, publishing fails in bounded time and says so; when it is back, everything goes on.
func testServerGone(t *testing.T, tr Transport) {
	b, name := tr.open(t), topic()
	ch, _ := Subscribe(t, b, "g", name)
	Publish(t, b, name, Keyed("k", "before"))
	Expect(t, ch, "before")
	tr.Kill(t)
	up := sync.OnceFunc(func() { tr.Start(t) })
	defer up()
	for range 2 {
		begin := time.Now()
		if err := b.Publish(name, Keyed("lost", "perhaps")); err == nil {
			t.Fatal("Publish returned nil without a server")
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		if err := b.Check(ctx); err == nil {
			t.Error("Check found nothing wrong without a server")
		}
		cancel()
		if d := time.Since(begin); d > 20*time.Second {
			t.Errorf("it took %v to fail", d)
		}
	}
	up()
	back := time.Now()
	for b.Publish(name, Keyed("k", "after")) != nil {
		if time.Since(back) > Patience {
			t.Fatal("it does not recover")
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Logf("publishes %v after the server is up", time.Since(back))
	for {
		m := Receive(t, ch)
		m.Ack()
		if string(m.Payload) == "after" {
			break
		}
	}
	t.Logf("receives %v after the server is up", time.Since(back))
}
