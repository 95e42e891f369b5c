package file

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"

	"github.com/wheelrefinery/refinery/bus"
)

// ownBus is a subscriber that takes its bus with it.
type ownBus struct {
	message.Subscriber
	bus bus.Bus
}

func (o ownBus) Close() error { return errors.Join(o.Subscriber.Close(), o.bus.Close()) }

var features = tests.Features{
	ConsumerGroups:  true,
	GuaranteedOrder: true,
	Persistent:      true,
}

// constructor opens one bus for the publisher and one for the subscriber, as if they were two processes.
func constructor(dir string) tests.ConsumerGroupPubSubConstructor {
	return func(t *testing.T, group string) (message.Publisher, message.Subscriber) {
		// The suite nacks one message three hundred times.
		quick := func(tn *tuning) { tn.maxBackoff = tn.minBackoff }
		b := open(t, dir, quick)
		s, err := b.Subscriber(group)
		if err != nil {
			t.Fatal(err)
		}
		return open(t, dir, quick), ownBus{s, b}
	}
}

func oneGroup(c tests.ConsumerGroupPubSubConstructor) tests.PubSubConstructor {
	return func(t *testing.T) (message.Publisher, message.Subscriber) { return c(t, "universal") }
}

func TestUniversal(t *testing.T) {
	c := constructor(t.TempDir())
	tests.TestPubSub(t, features, oneGroup(c), c)
}

// The suite's constructor without a group means: everybody receives everything. Here that is a group for each.
func TestUniversalOldMessages(t *testing.T) {
	c := constructor(t.TempDir())
	f := features
	f.NewSubscriberReceivesOldMessages = true
	tests.TestNewSubscriberReceivesOldMessages(t, tests.TestContext{TestID: tests.NewTestID(), Features: f},
		func(t *testing.T) (message.Publisher, message.Subscriber) { return c(t, watermill.NewShortUUID()) })
}

func TestUniversalStress(t *testing.T) {
	if os.Getenv("STRESS_TEST_COUNT") == "" {
		t.Setenv("STRESS_TEST_COUNT", "4")
	}
	c := constructor(t.TempDir())
	f := features
	f.ForceShort = true
	tests.TestPubSubStressTest(t, f, oneGroup(c), c)
}

func TestUniversalOneBus(t *testing.T) { // publisher and subscriber share their connection
	b := open(t, t.TempDir(), func(tn *tuning) { tn.maxBackoff = 10 * time.Millisecond })
	pubsub := func(*testing.T) (message.Publisher, message.Subscriber) {
		s, err := b.Subscriber("universal")
		if err != nil {
			t.Fatal(err)
		}
		return keepOpen{b}, s
	}
	for name, f := range map[string]func(*testing.T, tests.TestContext, tests.PubSubConstructor){
		"PublishSubscribe": tests.TestPublishSubscribe, "ConcurrentSubscribe": tests.TestConcurrentSubscribe,
		"InOrder": tests.TestPublishSubscribeInOrder, "NoAck": tests.TestNoAck, "ResendOnError": tests.TestResendOnError,
		"ContinueAfterSubscribeClose": tests.TestContinueAfterSubscribeClose, "SubscribeCtx": tests.TestSubscribeCtx,
		"MessageCtx": tests.TestMessageCtx,
	} {
		t.Run(name, func(t *testing.T) {
			f(t, tests.TestContext{TestID: tests.NewTestID(), Features: features}, pubsub)
		})
	}
}

type keepOpen struct{ message.Publisher }

func (keepOpen) Close() error { return nil }
