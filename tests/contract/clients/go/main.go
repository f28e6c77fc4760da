// Command client goes from a key pair to termination, in whatever cloud the environment names, with the AWS SDK
// for Go v2, and prints a report (tests/support/clients.py).
package main

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2instanceconnect"
	connecttypes "github.com/aws/aws-sdk-go-v2/service/ec2instanceconnect/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"
)

const (
	pageSize = 100
	patience = 5 * time.Minute
	missing  = "0123456789abcdef0"
	userData = "#!/bin/sh\necho \"ünïcode & <xml>\"\n"
)

type failure struct {
	Code      string `json:"code"`
	Status    int    `json:"status"`
	RequestID string `json:"request_id"`
	Typed     bool   `json:"typed"`
}

// client is one run of the program.
type client struct {
	ctx    context.Context
	ec2    *ec2.Client
	push   *ec2instanceconnect.Client
	sts    *sts.Client
	name   string
	report map[string]any
	errors map[string]failure
}

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

// newKey returns a new ED25519 key in OpenSSH's form, and its fingerprint as EC2 computes it.
func newKey() (string, string) {
	public, _, err := ed25519.GenerateKey(nil)
	must(0, err)
	var blob []byte
	for _, field := range [][]byte{[]byte("ssh-ed25519"), public} {
		blob = append(binary.BigEndian.AppendUint32(blob, uint32(len(field))), field...)
	}
	sum := sha256.Sum256(blob)
	return "ssh-ed25519 " + base64.StdEncoding.EncodeToString(blob), base64.StdEncoding.EncodeToString(sum[:])
}

// fails records the error that a call must have.
func (c *client) fails(label string, err error) {
	if err == nil {
		log.Fatalf("%s: no error", label)
	}
	var code smithy.APIError
	var response *awshttp.ResponseError
	if !errors.As(err, &code) || !errors.As(err, &response) {
		log.Fatalf("%s: %v", label, err)
	}
	var noInstance *connecttypes.EC2InstanceNotFoundException
	typed := label != "push" || errors.As(err, &noInstance)
	c.errors[label] = failure{code.ErrorCode(), response.HTTPStatusCode(), response.ServiceRequestID(), typed}
}

func (c *client) importKey(public string, tags []types.Tag) error {
	_, err := c.ec2.ImportKeyPair(c.ctx, &ec2.ImportKeyPairInput{
		KeyName: &c.name, PublicKeyMaterial: []byte(public),
		TagSpecifications: []types.TagSpecification{{ResourceType: types.ResourceTypeKeyPair, Tags: tags}},
	})
	return err
}

func (c *client) sendKey(instanceID, public string) (*ec2instanceconnect.SendSSHPublicKeyOutput, error) {
	return c.push.SendSSHPublicKey(c.ctx, &ec2instanceconnect.SendSSHPublicKeyInput{
		InstanceId: &instanceID, InstanceOSUser: aws.String("root"), SSHPublicKey: &public,
	})
}

func filter(name string, values ...string) types.Filter {
	return types.Filter{Name: &name, Values: values}
}

func (c *client) tagged(ids []string) []string {
	answer := must(c.ec2.DescribeTags(c.ctx, &ec2.DescribeTagsInput{
		Filters: []types.Filter{filter("key", "More"), filter("resource-id", ids...)},
	}))
	resources := []string{}
	for _, tag := range answer.Tags {
		resources = append(resources, *tag.ResourceId)
	}
	return resources
}

// look describes what was launched, and what else there is.
func (c *client) look(ids []string) {
	selected, states, volumeTags := []string{}, []string{}, []string{}
	pages := ec2.NewDescribeInstancesPaginator(c.ec2, &ec2.DescribeInstancesInput{
		MaxResults: aws.Int32(5),
		Filters: []types.Filter{
			filter("tag:Stage", "t?st"), filter("tag:Name", c.name),
			filter("instance-state-name", "pending", "running"),
		},
	})
	for pages.HasMorePages() {
		for _, reservation := range must(pages.NextPage(c.ctx)).Reservations {
			for _, instance := range reservation.Instances {
				selected = append(selected, *instance.InstanceId)
				states = append(states, string(instance.State.Name))
			}
		}
	}
	volumes := must(c.ec2.DescribeVolumes(c.ctx, &ec2.DescribeVolumesInput{
		Filters: []types.Filter{filter("attachment.instance-id", ids...)},
	}))
	for _, volume := range volumes.Volumes {
		for _, tag := range volume.Tags {
			if *tag.Key == "Name" {
				volumeTags = append(volumeTags, *tag.Value)
			}
		}
	}
	names, count := []string{}, 0
	kinds := ec2.NewDescribeInstanceTypesPaginator(c.ec2, &ec2.DescribeInstanceTypesInput{
		MaxResults: aws.Int32(pageSize),
	})
	for kinds.HasMorePages() {
		count++
		for _, kind := range must(kinds.NextPage(c.ctx)).InstanceTypes {
			names = append(names, string(kind.InstanceType))
		}
	}
	regions := []string{}
	for _, region := range must(c.ec2.DescribeRegions(c.ctx, &ec2.DescribeRegionsInput{})).Regions {
		regions = append(regions, *region.RegionName)
	}
	attribute := must(c.ec2.DescribeInstanceAttribute(c.ctx, &ec2.DescribeInstanceAttributeInput{
		InstanceId: &ids[0], Attribute: types.InstanceAttributeNameUserData,
	}))
	data := must(base64.StdEncoding.DecodeString(*attribute.UserData.Value))
	c.report["selected"], c.report["states"], c.report["volume_tags"] = selected, states, volumeTags
	c.report["types"], c.report["pages"], c.report["page"] = names, count, pageSize
	c.report["regions"], c.report["user_data"] = regions, string(data)
}

// refusals makes the calls that end in errors.
func (c *client) refusals(launch ec2.RunInstancesInput, public string, tags []types.Tag) {
	describe := func(input ec2.DescribeInstancesInput, options ...func(*ec2.Options)) error {
		_, err := c.ec2.DescribeInstances(c.ctx, &input, options...)
		return err
	}
	run := func(change func(*ec2.RunInstancesInput)) error {
		input := launch
		input.ClientToken = nil // the SDK has written one into launch
		input.TagSpecifications, input.MinCount, input.MaxCount = nil, aws.Int32(1), aws.Int32(1)
		change(&input)
		_, err := c.ec2.RunInstances(c.ctx, &input)
		return err
	}
	_, err := c.sendKey("i-"+missing, public)
	c.fails("push", err)
	c.fails("missing", describe(ec2.DescribeInstancesInput{InstanceIds: []string{"i-" + missing}}))
	c.fails("malformed", describe(ec2.DescribeInstancesInput{InstanceIds: []string{"i-none"}}))
	c.fails("filter", describe(ec2.DescribeInstancesInput{Filters: []types.Filter{filter("colour", "red")}}))
	c.fails("stranger", describe(ec2.DescribeInstancesInput{}, func(options *ec2.Options) {
		options.Credentials = credentials.NewStaticCredentialsProvider("AKIAIOSFODNN7EXAMPLE", "none", "")
	}))
	c.fails("dry", run(func(input *ec2.RunInstancesInput) { input.DryRun = aws.Bool(true) }))
	c.fails("image", run(func(input *ec2.RunInstancesInput) { input.ImageId = aws.String("ami-" + missing) }))
	c.fails("duplicate", c.importKey(public, tags))
	_, err = c.ec2.CreateVpcPeeringConnection(c.ctx, &ec2.CreateVpcPeeringConnectionInput{
		VpcId: aws.String("vpc-1"),
	})
	c.fails("unserved", err)
	_, err = c.sts.GetSessionToken(c.ctx, &sts.GetSessionTokenInput{})
	c.fails("unserved STS", err)
}

// end terminates what was launched, and deletes the key pair.
func (c *client) end(ids []string) {
	must(c.ec2.TerminateInstances(c.ctx, &ec2.TerminateInstancesInput{InstanceIds: ids}))
	described := ec2.DescribeInstancesInput{InstanceIds: ids}
	must(0, ec2.NewInstanceTerminatedWaiter(c.ec2, func(options *ec2.InstanceTerminatedWaiterOptions) {
		options.MinDelay, options.MaxDelay = time.Second, 2*time.Second
	}).Wait(c.ctx, &described, patience))
	ended := []string{}
	for _, reservation := range must(c.ec2.DescribeInstances(c.ctx, &described)).Reservations {
		for _, instance := range reservation.Instances {
			ended = append(ended, string(instance.State.Name))
		}
	}
	must(c.ec2.DeleteKeyPair(c.ctx, &ec2.DeleteKeyPairInput{KeyName: &c.name}))
	keys := must(c.ec2.DescribeKeyPairs(c.ctx, &ec2.DescribeKeyPairsInput{
		Filters: []types.Filter{filter("key-name", c.name)},
	}))
	c.report["ended"], c.report["keys"] = ended, append([]types.KeyPairInfo{}, keys.KeyPairs...)
}

func main() {
	ctx := context.Background()
	settings := must(config.LoadDefaultConfig(ctx))
	c := &client{
		ctx: ctx, ec2: ec2.NewFromConfig(settings), push: ec2instanceconnect.NewFromConfig(settings),
		sts: sts.NewFromConfig(settings), name: os.Getenv("NAME"), report: map[string]any{},
		errors: map[string]failure{},
	}
	c.report["account"] = *must(c.sts.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})).Account
	var tags []types.Tag
	must(0, json.Unmarshal([]byte(os.Getenv("TAGS")), &tags))
	tags = append(tags,
		types.Tag{Key: aws.String("Name"), Value: &c.name},
		types.Tag{Key: aws.String("Stage"), Value: aws.String("täst")})

	public, fingerprint := newKey()
	must(0, c.importKey(public, tags))
	pair := must(c.ec2.DescribeKeyPairs(ctx, &ec2.DescribeKeyPairsInput{
		KeyNames: []string{c.name}, IncludePublicKey: aws.Bool(true),
	})).KeyPairs[0]
	c.report["public_key"], c.report["fingerprint"] = public, fingerprint
	c.report["key"] = map[string]string{
		"name": *pair.KeyName, "type": string(pair.KeyType), "fingerprint": *pair.KeyFingerprint,
		"public": strings.TrimSpace(*pair.PublicKey),
	}

	launch := ec2.RunInstancesInput{
		ImageId: aws.String(os.Getenv("IMAGE")), InstanceType: types.InstanceType(os.Getenv("TYPE")),
		MinCount: aws.Int32(2), MaxCount: aws.Int32(2), KeyName: &c.name,
		UserData: aws.String(base64.StdEncoding.EncodeToString([]byte(userData))),
		TagSpecifications: []types.TagSpecification{
			{ResourceType: types.ResourceTypeInstance, Tags: tags},
			{ResourceType: types.ResourceTypeVolume, Tags: tags},
		},
	}
	ids := []string{}
	for _, instance := range must(c.ec2.RunInstances(ctx, &launch)).Instances {
		ids = append(ids, *instance.InstanceId)
	}
	c.report["launched"] = ids
	described := ec2.DescribeInstancesInput{InstanceIds: ids}
	must(0, ec2.NewInstanceExistsWaiter(c.ec2).Wait(ctx, &described, patience))
	must(0, ec2.NewInstanceRunningWaiter(c.ec2, func(options *ec2.InstanceRunningWaiterOptions) {
		options.MinDelay, options.MaxDelay = time.Second, 2*time.Second
	}).Wait(ctx, &described, patience))
	c.look(ids)
	more := []types.Tag{{Key: aws.String("More"), Value: aws.String("")}}
	must(c.ec2.CreateTags(ctx, &ec2.CreateTagsInput{Resources: ids, Tags: more}))
	c.report["tagged"] = c.tagged(ids)
	must(c.ec2.DeleteTags(ctx, &ec2.DeleteTagsInput{Resources: ids, Tags: more}))
	c.report["untagged"] = c.tagged(ids)
	c.report["pushed"] = must(c.sendKey(ids[0], public)).Success
	c.refusals(launch, public, tags)
	c.end(ids)
	c.report["errors"] = c.errors
	fmt.Println(string(must(json.Marshal(c.report))))
}
