package kafka

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/IBM/sarama"

	"github.com/wheelrefinery/refinery/bus"
)

// topicProbe is what Check publishes to. No topic of the bus can have the name.
const topicProbe = ".refinery-probe"

// topic is one that exists.
type topic struct {
	name       string
	partitions []int32
	groups     map[string]*group // that this process is a member of; guarded by kafkaBus.making

	messages, bytes atomic.Int64 // that this process has published or read
}

// saw keeps how large messages of the topic are.
func (t *topic) saw(messages, bytes int) {
	t.messages.Add(int64(messages))
	t.bytes.Add(int64(bytes))
}

// size estimates the bytes of messages: by those that this process has seen.
func (t *topic) size(messages int64) int64 {
	n := t.messages.Load()
	if n == 0 {
		return messages * 512
	}
	return messages * (t.bytes.Load() / n)
}

// shape is what a topic is created with. Nothing is removed by age, but by trim when every group has passed it. Small segments let that
// free space: Kafka removes whole ones.
func shape(name string) *sarama.TopicDetail {
	partitions := int32(16)
	settings := map[string]string{
		"retention.ms": "-1", "retention.bytes": "-1", "cleanup.policy": "delete", "max.message.bytes": fmt.Sprint(maxRecord),
		"segment.bytes": fmt.Sprint(16 << 20), "segment.ms": "3600000",
	}
	switch name {
	case bus.TopicCommands:
		partitions = 64
	case bus.TopicBuildRequested, bus.TopicPoison: // these tell what the event log knows anyway, and may have no group
		settings["retention.bytes"] = fmt.Sprint(64 << 20)
	case topicProbe:
		partitions = 1
		settings["retention.ms"] = "3600000"
	}
	entries := map[string]*string{}
	for k, v := range settings {
		entries[k] = &v
	}
	return &sarama.TopicDetail{NumPartitions: partitions, ReplicationFactor: -1, ConfigEntries: entries} // as many replicas as the cluster's default
}

// topic returns the topic with this name, and creates it if need be.
func (b *kafkaBus) topic(name string) (*topic, error) {
	b.mu.RLock()
	t, closed := b.topics[name], b.closed
	b.mu.RUnlock()
	if closed {
		return nil, bus.ErrClosed
	}
	if t != nil {
		return t, nil
	}
	if err := bus.CheckName("topic", name); err != nil && name != topicProbe {
		return nil, err
	}
	b.making.Lock()
	defer b.making.Unlock()
	b.mu.RLock()
	t = b.topics[name]
	b.mu.RUnlock()
	if t != nil { // another was faster
		return t, nil
	}
	partitions, err := b.create(name)
	if err != nil {
		return nil, fmt.Errorf("bus: open topic %s: %w", name, err)
	}
	t = &topic{name: name, partitions: partitions, groups: map[string]*group{}}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.topics[name] = t
	return t, nil
}

// create makes sure that a topic exists, and returns its partitions. One that somebody else has made is used as it is.
func (b *kafkaBus) create(name string) ([]int32, error) {
	want := shape(name)
	found, err := b.admin.DescribeTopics([]string{name})
	if err != nil {
		return nil, err
	}
	switch {
	case found[0].Err == sarama.ErrNoError:
		return b.lookAt(name, want)
	case found[0].Err != sarama.ErrUnknownTopicOrPartition:
		return nil, found[0].Err
	}
	err = b.admin.CreateTopic(name, want, false)
	if errors.Is(err, sarama.ErrTopicAlreadyExists) { // another process was faster
		err = nil
	}
	if err != nil {
		return nil, err
	}
	for begin := time.Now(); ; time.Sleep(20 * time.Millisecond) { // until its leaders know that they are
		var partitions []int32
		if err = b.client.RefreshMetadata(name); err == nil {
			partitions, err = b.client.Partitions(name)
		}
		if err == nil {
			_, err = b.ends(map[string]*topic{name: {name: name, partitions: partitions}}, sarama.OffsetNewest)
		}
		if err == nil {
			return partitions, nil
		}
		if time.Since(begin) > publishTime {
			return nil, fmt.Errorf("it was created, but has no leader: %w", err)
		}
	}
}

// lookAt returns the partitions of a topic that was there, and warns of what is not as it would be made.
func (b *kafkaBus) lookAt(name string, want *sarama.TopicDetail) ([]int32, error) {
	partitions, err := b.client.Partitions(name)
	if err != nil {
		return nil, err
	}
	if len(partitions) < int(want.NumPartitions) {
		b.logger.Warn("Kafka topic has few partitions: so many messages at most are read side by side",
			"topic", name, "partitions", len(partitions), "recommended", want.NumPartitions)
	}
	found, err := b.admin.DescribeConfigs([]*sarama.ConfigResource{
		{Type: sarama.TopicResource, Name: name, ConfigNames: []string{"retention.ms", "max.message.bytes"}},
	}, sarama.DescribeConfigsOptions{})
	if err != nil {
		return nil, err
	}
	for _, resource := range found {
		if resource.ErrorCode != sarama.ErrNoError {
			return nil, fmt.Errorf("its settings: %w", resource.ErrorCode)
		}
		for _, e := range resource.Configs {
			if is, wanted := e.Value, *want.ConfigEntries[e.Name]; is != wanted {
				b.logger.Warn("Kafka topic is not set as it should be: messages may be refused, or lost before they are read",
					"topic", name, "setting", e.Name, "is", is, "should_be", wanted)
			}
		}
	}
	return partitions, nil
}

// groupID names Kafka's group. Names of groups and topics have no slash.
func groupID(group, topic string) string { return group + "/" + topic }

// groupsOf returns, for each of the topics, the offsets that its groups have committed for its partitions; -1: none. A group is one of a
// topic from its first subscription on.
func (b *kafkaBus) groupsOf(topics map[string]*topic) (map[string]map[string]map[int32]int64, error) {
	ids, err := b.admin.ListConsumerGroups()
	if err != nil {
		return nil, err
	}
	all := map[string]map[string]map[int32]int64{}
	for id := range maps.Keys(ids) {
		group, name, _ := strings.Cut(id, "/")
		t := topics[name]
		if t == nil {
			continue
		}
		answer, err := b.admin.ListConsumerGroupOffsets(id, map[string][]int32{name: t.partitions})
		if err != nil {
			return nil, err
		}
		offsets := map[int32]int64{}
		for _, p := range t.partitions {
			block := answer.GetBlock(name, p)
			if block == nil {
				return nil, sarama.ErrIncompleteResponse
			}
			if block.Err != sarama.ErrNoError {
				return nil, block.Err
			}
			offsets[p] = block.Offset
		}
		if all[name] == nil {
			all[name] = map[string]map[int32]int64{}
		}
		all[name][group] = offsets
	}
	return all, nil
}

// ends returns the first or the next offset (sarama.OffsetOldest, sarama.OffsetNewest) of each partition.
func (b *kafkaBus) ends(topics map[string]*topic, which int64) (_ map[string]map[int32]int64, err error) {
	ask := map[string]map[int32]int64{}
	for name, t := range topics {
		ask[name] = map[int32]int64{}
		for _, p := range t.partitions {
			ask[name][p] = which
		}
	}
	answer, err := b.admin.ListOffsets(ask, nil)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil { // partitions have moved: the next attempt knows where
			err = errors.Join(err, b.lookUps.RefreshMetadata(slices.Collect(maps.Keys(topics))...))
		}
	}()
	for name, partitions := range ask {
		for p := range partitions {
			r := answer[name][p]
			if r == nil {
				return nil, sarama.ErrIncompleteResponse
			}
			if r.Err != nil && r.Err != sarama.ErrNoError {
				return nil, r.Err
			}
			partitions[p] = r.Offset
		}
	}
	return ask, nil
}

// trim removes what every group has passed.
func (b *kafkaBus) trim(t *topic) error {
	topics := map[string]*topic{t.name: t}
	oldest, err := b.ends(topics, sarama.OffsetOldest)
	if err != nil {
		return err
	}
	groups, err := b.groupsOf(topics)
	if err != nil {
		return err
	}
	if len(groups[t.name]) == 0 {
		return nil
	}
	until := map[int32]int64{}
	for _, p := range t.partitions {
		passed := int64(-1)
		for _, offsets := range groups[t.name] {
			if passed < 0 || offsets[p] < passed {
				passed = max(offsets[p], 0)
			}
		}
		if passed > oldest[t.name][p] {
			until[p] = passed
		}
	}
	if len(until) == 0 {
		return nil
	}
	return b.admin.DeleteRecords(t.name, until)
}
