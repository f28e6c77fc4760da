// From a key pair to termination, in whatever cloud the environment names; prints a report (support/clients.py).
import { createHash, generateKeyPairSync } from "node:crypto";
import * as ec2 from "@aws-sdk/client-ec2";
import * as connect from "@aws-sdk/client-ec2-instance-connect";
import * as sts from "@aws-sdk/client-sts";

const { IMAGE, TYPE, NAME, TAGS } = process.env;
const client = new ec2.EC2Client({});
const pushes = new connect.EC2InstanceConnectClient({});
const report = { errors: {}, page: 100 };

/** A new ED25519 key in OpenSSH's form, and its fingerprint as EC2 computes it. */
function newKey() {
  const { publicKey } = generateKeyPairSync("ed25519");
  const field = (bytes) => {
    const length = Buffer.alloc(4);
    length.writeUInt32BE(bytes.length);
    return Buffer.concat([length, bytes]);
  };
  const raw = Buffer.from(publicKey.export({ format: "jwk" }).x, "base64url");
  const blob = Buffer.concat([field(Buffer.from("ssh-ed25519")), field(raw)]);
  return [`ssh-ed25519 ${blob.toString("base64")}`, createHash("sha256").update(blob).digest("base64")];
}

async function fails(label, send) {
  try {
    await send();
  } catch (error) {
    const { httpStatusCode: status, requestId } = error.$metadata ?? {};
    const typed = error instanceof connect.EC2InstanceNotFoundException || error instanceof ec2.EC2ServiceException;
    report.errors[label] = { code: error.name, status, request_id: requestId, typed };
    return;
  }
  throw new Error(`${label}: no error`);
}

report.account = (await new sts.STSClient({}).send(new sts.GetCallerIdentityCommand({}))).Account;

const [publicKey, fingerprint] = newKey();
Object.assign(report, { public_key: publicKey, fingerprint });
const Tags = [...JSON.parse(TAGS), { Key: "Name", Value: NAME }, { Key: "Stage", Value: "täst" }];
const tagged = (ResourceType) => ({ ResourceType, Tags });
const imported = {
  KeyName: NAME, PublicKeyMaterial: Buffer.from(publicKey), TagSpecifications: [tagged("key-pair")],
};
await client.send(new ec2.ImportKeyPairCommand(imported));
const described = await client.send(new ec2.DescribeKeyPairsCommand({ KeyNames: [NAME], IncludePublicKey: true }));
report.key = {
  name: described.KeyPairs[0].KeyName, type: described.KeyPairs[0].KeyType,
  fingerprint: described.KeyPairs[0].KeyFingerprint, public: described.KeyPairs[0].PublicKey.trim(),
};

const run = await client.send(new ec2.RunInstancesCommand({
  ImageId: IMAGE, InstanceType: TYPE, MinCount: 2, MaxCount: 2, KeyName: NAME,
  UserData: Buffer.from('#!/bin/sh\necho "ünïcode & <xml>"\n').toString("base64"),
  TagSpecifications: [tagged("instance"), tagged("volume")],
}));
const InstanceIds = report.launched = run.Instances.map((instance) => instance.InstanceId);
const waiter = { client, maxWaitTime: 300, minDelay: 1, maxDelay: 2 };
await ec2.waitUntilInstanceExists(waiter, { InstanceIds });
await ec2.waitUntilInstanceRunning(waiter, { InstanceIds });

const Filters = [
  { Name: "tag:Stage", Values: ["t?st"] }, { Name: "tag:Name", Values: [NAME] },
  { Name: "instance-state-name", Values: ["pending", "running"] },
];
const selected = [];
for await (const page of ec2.paginateDescribeInstances({ client, pageSize: 5 }, { Filters })) {
  selected.push(...page.Reservations.flatMap((reservation) => reservation.Instances));
}
report.selected = selected.map((instance) => instance.InstanceId);
report.states = selected.map((instance) => instance.State.Name);
const volumes = await client.send(new ec2.DescribeVolumesCommand({
  Filters: [{ Name: "attachment.instance-id", Values: InstanceIds }],
}));
report.volume_tags = volumes.Volumes.map((volume) => volume.Tags.find((tag) => tag.Key === "Name").Value);
report.types = [];
report.pages = 0;
for await (const page of ec2.paginateDescribeInstanceTypes({ client, pageSize: report.page }, {})) {
  report.types.push(...page.InstanceTypes.map((type) => type.InstanceType));
  report.pages += 1;
}
report.regions = (await client.send(new ec2.DescribeRegionsCommand({}))).Regions.map((region) => region.RegionName);
const attribute = await client.send(new ec2.DescribeInstanceAttributeCommand({
  InstanceId: InstanceIds[0], Attribute: "userData",
}));
report.user_data = Buffer.from(attribute.UserData.Value, "base64").toString();

const withTag = async () => {
  const answer = await client.send(new ec2.DescribeTagsCommand({
    Filters: [{ Name: "key", Values: ["More"] }, { Name: "resource-id", Values: InstanceIds }],
  }));
  return answer.Tags.map((tag) => tag.ResourceId).sort();
};
await client.send(new ec2.CreateTagsCommand({ Resources: InstanceIds, Tags: [{ Key: "More", Value: "" }] }));
report.tagged = await withTag();
await client.send(new ec2.DeleteTagsCommand({ Resources: InstanceIds, Tags: [{ Key: "More" }] }));
report.untagged = await withTag();

const push = (InstanceId) => pushes.send(new connect.SendSSHPublicKeyCommand({
  InstanceId, InstanceOSUser: "root", SSHPublicKey: publicKey,
}));
report.pushed = (await push(InstanceIds[0])).Success;

const missing = "0123456789abcdef0";
const launch = (changes) => client.send(new ec2.RunInstancesCommand({
  ImageId: IMAGE, InstanceType: TYPE, MinCount: 1, MaxCount: 1, ...changes,
}));
const describe = (input, from = client) => from.send(new ec2.DescribeInstancesCommand(input));
const stranger = new ec2.EC2Client({
  credentials: { accessKeyId: "AKIAIOSFODNN7EXAMPLE", secretAccessKey: "none" },
});
await fails("push", () => push(`i-${missing}`));
await fails("missing", () => describe({ InstanceIds: [`i-${missing}`] }));
await fails("malformed", () => describe({ InstanceIds: ["i-none"] }));
await fails("filter", () => describe({ Filters: [{ Name: "colour", Values: ["red"] }] }));
await fails("stranger", () => describe({}, stranger));
await fails("dry", () => launch({ DryRun: true }));
await fails("image", () => launch({ ImageId: `ami-${missing}` }));
await fails("duplicate", () => client.send(new ec2.ImportKeyPairCommand(imported)));
await fails("unserved", () => client.send(new ec2.CreateVpcPeeringConnectionCommand({ VpcId: "vpc-1" })));
await fails("unserved STS", () => new sts.STSClient({}).send(new sts.GetSessionTokenCommand({})));

await client.send(new ec2.TerminateInstancesCommand({ InstanceIds }));
await ec2.waitUntilInstanceTerminated(waiter, { InstanceIds });
const ended = await describe({ InstanceIds });
report.ended = ended.Reservations.flatMap((item) => item.Instances).map((instance) => instance.State.Name);
await client.send(new ec2.DeleteKeyPairCommand({ KeyName: NAME }));
const keys = await client.send(new ec2.DescribeKeyPairsCommand({ Filters: [{ Name: "key-name", Values: [NAME] }] }));
report.keys = keys.KeyPairs;
console.log(JSON.stringify(report));
