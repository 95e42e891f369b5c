package bustest

import (
	"errors"
	"os"
	"testing"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
	"go.uber.org/goleak"

	"github.com/wheelrefinery/refinery/bus"
)

// Leaks are goroutines that the universal tests leave behind: their subscriber of many hands out messages until it is closed, and a test
// that has read what it waits for reads nothing that comes twice.
var Leaks = []goleak.Option{
	goleak.IgnoreAnyFunction("github.com/ThreeDotsLabs/watermill/internal/subscriber.(*multiplier).Subscribe.func2"),
	goleak.IgnoreAnyFunction("github.com/ThreeDotsLabs/watermill/internal/subscriber.(*multiplier).Subscribe.func3"),
}

// ownBus is a subscriber that takes its bus with it.
type ownBus struct {
	message.Subscriber
	bus bus.Bus
}

func (o ownBus) Close() error { return errors.Join(o.Subscriber.Close(), o.bus.Close()) }

type keepOpen struct{ message.Publisher }

func (keepOpen) Close() error { return nil }

// Universal runs watermill's universal tests. open opens another bus on the same server each time; it should come back quickly from a
// nack, since the tests nack one message three hundred times. GuaranteedOrder and Persistent come with f; the rest every transport has.
func Universal(t *testing.T, f tests.Features, open func(t *testing.T) bus.Bus) {
	f.ConsumerGroups = true
	// One bus for the publisher and one for the subscriber, as if they were two processes.
	in := func(t *testing.T, group string) (message.Publisher, message.Subscriber) {
		b := open(t)
		s, err := b.Subscriber(group)
		if err != nil {
			t.Fatal(err)
		}
		return open(t), ownBus{s, b}
	}
	one := func(t *testing.T) (message.Publisher, message.Subscriber) { return in(t, "universal") }
	t.Run("All", func(t *testing.T) { tests.TestPubSub(t, f, one, in) })
	// The suite's constructor without a group means: everybody receives everything. Here that is a group for each.
	t.Run("OldMessages", func(t *testing.T) {
		f := f
		f.NewSubscriberReceivesOldMessages = true
		tests.TestNewSubscriberReceivesOldMessages(t, tests.TestContext{TestID: tests.NewTestID(), Features: f},
			func(t *testing.T) (message.Publisher, message.Subscriber) { return in(t, watermill.NewShortUUID()) })
	})
	t.Run("Stress", func(t *testing.T) {
		if os.Getenv("STRESS_TEST_COUNT") == "" {
			t.Setenv("STRESS_TEST_COUNT", "4")
		}
		f := f
		f.ForceShort = true
		tests.TestPubSubStressTest(t, f, one, in)
	})
	t.Run("OneBus", func(t *testing.T) { // publisher and subscriber share their connection
		b := open(t)
		shared := func(*testing.T) (message.Publisher, message.Subscriber) {
			s, err := b.Subscriber("universal")
			if err != nil {
				t.Fatal(err)
			}
			return keepOpen{b}, s
		}
		for name, run := range map[string]func(*testing.T, tests.TestContext, tests.PubSubConstructor){
			"PublishSubscribe": tests.TestPublishSubscribe, "ConcurrentSubscribe": tests.TestConcurrentSubscribe,
			"InOrder": tests.TestPublishSubscribeInOrder, "NoAck": tests.TestNoAck, "ResendOnError": tests.TestResendOnError,
			"ContinueAfterSubscribeClose": tests.TestContinueAfterSubscribeClose, "SubscribeCtx": tests.TestSubscribeCtx,
			"MessageCtx": tests.TestMessageCtx,
		} {
			t.Run(name, func(t *testing.T) {
				run(t, tests.TestContext{TestID: tests.NewTestID(), Features: f}, shared)
			})
		}
	})
}
